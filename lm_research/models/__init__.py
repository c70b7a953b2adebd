"""Encoder, decoder and encoder-decoder models: architectures, blocks, attention, heads and families.

Suffixes of array names give their axes in order: `query_BLHK` is [batch, length, heads, head width]. A file that needs other letters
lists them in its docstring.

  B  sequences of the batch            H  query heads                R  rows of a matrix: all B x L positions
  L  length; of queries or targets     G  key/value heads            X  distances between a query and a key
  S  length of keys or of the source   K  width of a head            N  layers
  M  predicted positions               F  width of the feed-forward  C  classes
  D  width of the residual stream      E  width of the embeddings    V  vocabulary
"""

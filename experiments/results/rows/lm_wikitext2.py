"""Word-level language modeling on WikiText-2."""

from __future__ import annotations

from experiments.results.row import Row

ROW = Row(
    title="WikiText-2: test perplexity of words",
    source="salesforce/awd-lstm-lm at 19470c8, README: 65.6 for AWD-LSTM; 99.3 for an LSTM (Grave 2016, from memory)",
    why="Planned: tokenizer.type=word reads the corpus with the published number of tokens (exact_wikitext2); no recipe has been run.",
    command="python -m lm_research.train --config=configs/gpt2_small.py --config.tokenizer.type=word "
    "--config.tokenizer.vocab_size=33278 --config.tokenizer.keep_newlines=True --config.data.document_separator=file "
    "--workdir=runs/wikitext2",
)

"""Word-level language modeling on WikiText-2."""

from __future__ import annotations

from experiments.results.row import Row

FILES = "../shared/data/public/lm/wikitext2/wiki"
ROW = Row(
    title="WikiText-2: test perplexity of words",
    source="salesforce/awd-lstm-lm at 19470c8, README: 65.6 for AWD-LSTM; 99.3 for an LSTM (Grave 2016, from memory)",
    why="Planned: tokenizer.type=word reads the corpus with the published number of tokens (exact_wikitext2), and the end of a run reports "
    "the perplexity of all tokens of data.validation_source; no recipe has been run.",
    command="python -m lm_research.train --config=configs/gpt2_small.py --config.tokenizer.type=word "
    "--config.tokenizer.vocab_size=33278 --config.tokenizer.keep_newlines=True --config.data.document_separator=file "
    f"--config.data.source={FILES}.train.tokens.xz --config.data.validation_source={FILES}.test.tokens.xz --workdir=runs/wikitext2",
)

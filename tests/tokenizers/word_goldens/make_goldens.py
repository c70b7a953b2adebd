"""Make words.json: ids of texts given word by word, and of the same running texts, by transformers.

    pip install transformers==5.24.0 tokenizers==0.23.3
    python tests/tokenizers/word_goldens/make_goldens.py

The vocabularies are those of hf_tokenizers.json. `settings` are added to tokenizer_config.json, for transformers as for us.
Special tokens around the text are those of `is_split_into_words=True`.
"""

from __future__ import annotations

import base64
import json
import pathlib
import tempfile

import transformers

HERE = pathlib.Path(__file__).parent
WORDS = [
    ["In", "the", "café", ",", "x"],
    ["the", "New York", "1,000", "🙂", "God\u00a0said", "earth"],
    ["神は", "天と", "light", ".", "don't"],
    ["God"],
]
CASES = [(family, {}) for family in ("albert", "bert", "bert cased", "llama", "mbart", "t5", "xlm-roberta")]
CASES += [("llama", {"legacy": True}), ("llama", {"add_bos_token": True, "add_eos_token": False})]
CASES += [(family, {"add_prefix_space": True}) for family in ("gpt2", "roberta")]


def main() -> None:
    families = json.loads((HERE.parent / "goldens" / "hf_tokenizers.json").read_text(encoding="utf-8"))["families"]
    cases = []
    for family, settings in CASES:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in families[family]["files"].items():
                (pathlib.Path(folder) / name).write_bytes(base64.b64decode(text))
            config = pathlib.Path(folder) / "tokenizer_config.json"
            given = json.loads(config.read_text()) if config.is_file() else {}
            config.write_text(json.dumps(given | settings))
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        split = [tokenizer(words, is_split_into_words=True) for words in WORDS]
        running = [tokenizer(" ".join(words))["input_ids"] for words in WORDS]
        assert [one["input_ids"] for one in split] == running, family
        rows = [{"ids": one["input_ids"], "words": one.word_ids()} for one in split]
        cases.append({"family": family, "settings": settings, "rows": rows})
    written = json.dumps({"transformers": transformers.__version__, "texts": WORDS, "cases": cases})
    (HERE / "words.json").write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Make blenderbot_small.json next to this file with transformers 5.24's BlenderbotSmallTokenizer.

    python tests/tokenizers/subword_goldens/make_goldens.py

Merges are learned from the texts. Some of their products, and some characters, are missing in the vocabulary.
"""

from __future__ import annotations

import collections
import json
import pathlib
import tempfile

import transformers

HERE = pathlib.Path(__file__).resolve().parent
TEXTS = [
    "Hello world, how are you?", "I'm fine; you're (not) FINE!", "two\nlines\n\nand  more \n", "it's 'quoted'\n'next'", "a b c I",
    "...wait... what?!", "Straße İstanbul ÉCOLE", "你好 мир", "__start__ hello __end__ world __null__", "x__unk__y __START__", "", " \t ",
    "hello@@ world@@", "lower LOWEST lowering", "semi-colon a,b,c (x)", "end.\n", "tab\there", "no\u00a0break",
]  # fmt: skip


def learned(texts: list[str], count: int) -> list[tuple[str, str]]:
    """Merge the most frequent pair of neighbors, `count` times."""
    words = collections.Counter(word.lower() for text in texts for word in text.split())
    parts = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs = collections.Counter()
        for word, found in parts.items():
            for pair in zip(found, found[1:], strict=False):
                pairs[pair] += words[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for found in parts.values():
            place = 0
            while place < len(found) - 1:
                if (found[place], found[place + 1]) == best:
                    found[place : place + 2] = ["".join(best)]
                place += 1
    return merges


def main() -> None:
    merges = learned([text for text in TEXTS if "__" not in text] * 2, 60)
    symbols = sorted({letter for text in TEXTS for letter in text.lower() if not letter.isspace()})
    pieces = [*symbols, *(one + "</w>" for one in symbols), *dict.fromkeys("".join(pair) for pair in merges)]
    names = [one.removesuffix("</w>") if one.endswith("</w>") else f"{one}@@" for one in pieces]
    names = [name for number, name in enumerate(dict.fromkeys(names)) if number % 7 != 3]
    vocab = {
        name: number for number, name in enumerate(["__null__", "__start__", "__end__", "__unk__", "__newln__", *names])
    }
    files = {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "BlenderbotSmallTokenizer"}),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (pathlib.Path(folder) / name).write_text(content, encoding="utf-8")
        tokenizer = transformers.BlenderbotSmallTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    decoded = [
        [tokenizer.decode(row, skip_special_tokens=skip, clean_up_tokenization_spaces=False) for row in ids]
        for skip in (True, False)
    ]
    content = {"version": transformers.__version__, "files": files, "texts": TEXTS, "ids": ids, "decoded": decoded}
    (HERE / "blenderbot_small.json").write_text(
        json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()

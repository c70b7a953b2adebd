"""Make deberta.json next to this file: ids that sentencepiece itself gives with a tiny model of DeBERTa-v2's kind.

Run in a separate environment with sentencepiece 0.2; tests need nothing of it:

    python tests/tokenizers/deberta_goldens/make_goldens.py

The released spm.model is a unigram model with [PAD], [CLS], [SEP] and [UNK] as the pieces 0 to 3; the mask is added after the last piece.
"""

import base64
import io
import json
import pathlib
import random
import tempfile

import sentencepiece

TEXTS = [
    "In the beginning God created the heaven and the earth.",
    "  And  the earth\twas without form,\nand void; ",
    "12,500 Caf\u00e9s \uff21\uff22 \u00bd",
    "unseen \u4e2d\u6587 \U0001f600!",
    "",
]
# White space, full-width A and B, and a half: a few of the rules of the released model, whose table is 240 KB.
RULES = "9\t20\nA\t20\nFF21\t41\nFF22\t42\nBD\t31 2F 32\n"
WORDS = "in the beginning God created heaven and earth was without form void ; , . 1 2 5 0 A B a e caf\u00e9 cafes ! darkness upon face of deep"


def main() -> None:
    rng, words = random.Random(0), WORDS.split()
    lines = [" ".join(rng.choice(words) for _ in range(12)) for _ in range(400)]
    with tempfile.TemporaryDirectory() as folder:
        rules = pathlib.Path(folder, "rules.tsv")
        rules.write_text(RULES)
        model = train(lines, str(rules))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    content = {
        "maker": "tests/tokenizers/deberta_goldens/make_goldens.py",
        "sentencepiece": sentencepiece.__version__,
        "model": base64.b64encode(model).decode(),
        "size": processor.get_piece_size(),
        "texts": TEXTS,
        "ids": [processor.encode(text) for text in TEXTS],
    }
    path = pathlib.Path(__file__).with_name("deberta.json")
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(path.stat().st_size, content["ids"])


def train(lines: list[str], rules: str) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=66,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        normalization_rule_tsv=rules,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


if __name__ == "__main__":
    main()

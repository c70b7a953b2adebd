"""Make gemma.json: a tiny vocabulary as Gemma's, and transformers' encodings and texts with it.

    pip install transformers==5.24.0 tokenizers==0.23.3 sentencepiece
    python tests/tokenizers/gemma_goldens/make_goldens.py

The sentencepiece model has the options of the released one: BPE, bytes for unknown characters, no space before a text, digits apart, and
runs of spaces, line breaks and tabs as user-defined pieces. Its only single tab is the byte.
"""

import base64
import io
import json
import pathlib
import tempfile

import sentencepiece
import transformers

import tokenizers

HERE = pathlib.Path(__file__).parent
OTHERS = json.loads((HERE.parent / "goldens" / "hf_tokenizers.json").read_text(encoding="utf-8"))
TEXTS, PAIRS = OTHERS["texts"], OTHERS["pairs"]
LINES = [
    "In the beginning God created the heavens and the earth.",
    "The earth was without form, and void; darkness was upon the face of the deep.",
    "And God said, Let there be light: and there was light. 1,000 9, 12 don't.",
    "El café está aquí. Ärger im Süden. 神は 天と 地とを 創造された。",
] * 8
RUNS = [
    "a  b\n\n\nc   d",
    "     deep\n\n\n\n\nend\n",
    " \n  \n   x",
    "tab\tand\t\tmore\t\t\t",
    "<start_of_turn>user\nthe earth<end_of_turn>\n<start_of_turn>model\n",
    "x <b>the</b> <unused0> 12345 <bos>In",
    "▁▁ and  ▁ ",
]


def model() -> bytes:
    runs = [char * count for char in ("\n", "▁", "\t") for count in range(1 + (char != "\n"), 5)]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=made,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_digits=True,
        byte_fallback=True,
        minloglevel=3,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=["<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>", *runs, "<b>"],
    )
    return made.getvalue()


def main() -> None:
    files = {
        "config.json": b'{"model_type": "gemma3_text"}',
        # As the released directories have them.
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "GemmaTokenizer",
                "add_bos_token": True,
                "add_eos_token": False,
                "legacy": None,
                "spaces_between_special_tokens": False,
                "clean_up_tokenization_spaces": False,
            }
        ).encode(),
        "tokenizer.model": model(),
    }
    texts = TEXTS + RUNS
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (pathlib.Path(folder) / name).write_bytes(content)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        saved = {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}
    saved["tokenizer.json"] = json.dumps(json.loads(saved["tokenizer.json"]), separators=(",", ":")).encode()
    saved["tokenizer_config.json"] = json.dumps(
        {key: value for key, value in json.loads(saved["tokenizer_config.json"]).items() if key != "vocab_file"}
    ).encode()
    plain = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    rows = [tokenizer(text)["input_ids"] for text in texts]
    golden = {
        "origin": f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, "
        f"sentencepiece {sentencepiece.__version__}; make_goldens.py beside this file",
        "files": {name: base64.b64encode(content).decode() for name, content in files.items()},
        "saved": {name: content.decode() for name, content in saved.items() if name != "tokenizer.model"},
        "size": len(tokenizer),
        "roles": {role: getattr(tokenizer, f"{role}_token_id") for role in "bos eos unk pad mask".split()},
        "texts": texts,
        "ids": rows,
        "sentencepiece": [plain.encode(text) for text in texts],
        "decoded": [tokenizer.decode(row) for row in rows],
        "skipped": [tokenizer.decode(row, skip_special_tokens=True) for row in rows],
        "pairs": [tokenizer(*pair)["input_ids"] for pair in PAIRS],
        "padded": dict(tokenizer(["In the beginning", "God"], padding=True)),
    }
    (HERE / "gemma.json").write_text(json.dumps(golden, separators=(",", ":"), sort_keys=True) + "\n")
    for text, row, other in zip(texts, rows, golden["sentencepiece"], strict=True):
        if row[1:] != other:
            print(repr(text), tokenizer.convert_ids_to_tokens(row), plain.encode(text, out_type=str))


if __name__ == "__main__":
    main()

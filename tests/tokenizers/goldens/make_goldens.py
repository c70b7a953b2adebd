"""Make hf_tokenizers.json: tiny vocabularies of published classes, and transformers' encodings of texts with them.

    pip install transformers==5.24.0 tokenizers==0.23.3 sentencepiece
    python tests/tokenizers/goldens/make_goldens.py

The sentencepiece models do not normalize (compiled rules are a quarter of a megabyte), and no text has a mask after
a space: there this version of transformers departs from the models' training and we do not follow (hf_vocabularies.py).
"""

from __future__ import annotations

import base64
import io
import json
import pathlib
import tempfile

import sentencepiece
import transformers

import tokenizers

HERE = pathlib.Path(__file__).parent
LINES = [
    "In the beginning God created the heavens and the earth.",
    "The earth was without form, and void; darkness was upon the face of the deep.",
    "And God said, Let there be light: and there was light. 1,000 9, 12 don't.",
    "El café está aquí. Ärger im Süden. 神は 天と 地とを 創造された。",
] * 8
TEXTS = [
    "",
    " ",
    "In the beginning",
    "  In   the beginning  ",
    "God\nsaid\n\n\tlight!",
    "café CAFÉ Ärger",
    "cafe\u0301",
    "神は天と地とを",
    "🙂 light 🙂🙂",
    "don't there's",
    "1,000 9, 12.5",
    "▁ Ġ ##ing",
    "unknowable Xyzzy ☃",
    "a[CLS]b [SEP] [PAD]",
    "the</s>earth",
    "<s>light</s>",
    "<mask>light",
    "[MASK] light",
    "x <unk> [UNK]",
    "<extra_id_0> void <extra_id_9>.",
    "one<|endoftext|>two",
    "en_XX light",
    "soft\u00adhyphen\u200b nbsp\u00a0x",
    "tail\u3000 ",
]
PAIRS = [("God said", "Let there be light: and there was light."), ("And there was light. " * 3, "void"), ("", "the")]


def sentencepieces(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=3,
        **options,
    )
    return model.getvalue()


def byte_level(specials: list[str]) -> dict[str, bytes]:
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(LINES, vocab_size=330, special_tokens=specials, show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        return {pathlib.Path(path).name: pathlib.Path(path).read_bytes() for path in trained.save_model(folder)}


def wordpieces() -> bytes:
    trained = tokenizers.BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    trained.train_from_iterator(LINES + [line.lower() for line in LINES], vocab_size=200, show_progress=False)
    vocab = trained.get_vocab()
    return "".join(f"{token}\n" for token in sorted(vocab, key=vocab.get)).encode()


def folders() -> dict[str, dict[str, bytes]]:
    """Name -> files; config.json and tokenizer_config.json as the published models of the class have them."""
    bert, fairseq = wordpieces(), sentencepieces(vocab_size=150)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    albert = sentencepieces(
        vocab_size=150,
        pad_id=0,
        pad_piece="<pad>",
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
    )
    t5 = sentencepieces(vocab_size=150, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>")
    llama = sentencepieces(vocab_size=380, model_type="bpe", byte_fallback=True, remove_extra_whitespaces=False)

    def folder(model_type: str, settings: dict | None = None, **files: bytes) -> dict[str, bytes]:
        named = {name.replace("__", "."): content for name, content in files.items()}
        named["config.json"] = json.dumps({"model_type": model_type}).encode()
        return named | ({"tokenizer_config.json": json.dumps(settings).encode()} if settings else {})

    cased = {"do_lower_case": False, "tokenize_chinese_chars": False, "model_max_length": 512}
    plain = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True, "legacy": False}
    return {
        "bert": folder("bert", vocab__txt=bert),
        "bert cased": folder("bert", cased, vocab__txt=bert),
        "gpt2": folder("gpt2") | byte_level(["<|endoftext|>"]),
        "roberta": folder("roberta") | byte_level(specials),
        "t5": folder("t5", {"extra_ids": 10}, spiece__model=t5),
        "albert": folder(
            "albert", {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}, spiece__model=albert
        ),
        "xlm-roberta": folder("xlm-roberta") | {"sentencepiece.bpe.model": fairseq},
        "mbart": folder("mbart") | {"sentencepiece.bpe.model": fairseq},
        "llama": folder("llama", plain, tokenizer__model=llama),
    }


def answers(tokenizer: transformers.PreTrainedTokenizerBase) -> dict[str, object]:
    batch = [text for text in TEXTS if text.strip()][:6]
    padded = tokenizer(batch, padding=True, truncation=True, max_length=9) if tokenizer.pad_token else None
    return {
        "size": len(tokenizer),
        "roles": {role: getattr(tokenizer, f"{role}_token_id") for role in "bos eos unk sep pad cls mask".split()},
        "texts": [dict(tokenizer(text, return_offsets_mapping=True)) for text in TEXTS],
        "bare": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS],
        "pairs": [dict(tokenizer(*pair)) for pair in PAIRS],
        "cut": [dict(tokenizer(*pair, truncation=True, max_length=11)) for pair in PAIRS],
        "batch": {"texts": batch, "padded": padded and dict(padded)},
    }


def main() -> None:
    golden: dict[str, object] = {
        "origin": f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, "
        f"sentencepiece {sentencepiece.__version__}; make_goldens.py beside this file",
        "texts": TEXTS,
        "pairs": PAIRS,
        "families": {},
    }
    for name, files in folders().items():
        with tempfile.TemporaryDirectory() as folder:
            for file, content in files.items():
                (pathlib.Path(folder) / file).write_bytes(content)
            expected = answers(transformers.AutoTokenizer.from_pretrained(folder))
        encoded = {file: base64.b64encode(content).decode() for file, content in files.items()}
        golden["families"][name] = {"files": encoded, **expected}
    (HERE / "hf_tokenizers.json").write_text(json.dumps(golden, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

"""Make languages.json: tiny tokenizers that mark texts with their language, and transformers' encodings of sources and targets.

    pip install transformers==5.24.0 tokenizers==0.23.3 sentencepiece
    python tests/tokenizers/language_goldens/make_goldens.py

NLLB's folders are those that transformers saves; it is given a few languages, since a sentencepiece model has none.
"""

from __future__ import annotations

import base64
import io
import json
import pathlib
import tempfile

import sentencepiece
import transformers

HERE = pathlib.Path(__file__).parent
LINES = [
    "In the beginning God created the heavens and the earth.",
    "The earth was without form, and void; darkness was upon the face of the deep.",
    "And God said, Let there be light: and there was light. 1,000 9, 12 don't.",
    "El café está aquí. Ärger im Süden. 神は 天と 地とを 創造された。",
] * 8
SOURCES = ["In the beginning God created.", "the earth was without form, and void", "light"]
TARGETS = ["El café está aquí.", "light and light", "神は 天と地とを"]
FEW = ["eng_Latn", "ron_Latn", "fra_Latn"]
SPM = "sentencepiece.bpe.model"


def sentencepieces(**options: object) -> bytes:
    """A model without rules of normalization, which are a quarter of a megabyte."""
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


def m2m_vocabulary(model: bytes) -> bytes:
    """The dictionary of fairseq: its four tokens, then most pieces in another order than sentencepiece's; the last few are not in it."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    names = [pieces.id_to_piece(number) for number in range(3, pieces.get_piece_size() - 4)][::-1]
    return json.dumps({name: number for number, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", *names])}).encode()


def folders() -> dict[str, dict[str, bytes]]:
    """Name -> files."""
    unigram, merges = sentencepieces(vocab_size=150), sentencepieces(vocab_size=160, model_type="bpe")
    found = {}
    for name, model in {"MBart": unigram, "MBart50": unigram, "M2M100": merges, "PLBart": merges}.items():
        settings = json.dumps({"tokenizer_class": f"{name}Tokenizer"}).encode()
        found[name] = {SPM: model, "tokenizer_config.json": settings}
    multi = json.dumps({"tokenizer_class": "PLBartTokenizer", "language_codes": "multi"}).encode()
    found["PLBart multi"] = {SPM: merges, "tokenizer_config.json": multi}
    found["M2M100"]["vocab.json"] = m2m_vocabulary(merges)
    for name, legacy in {"Nllb": False, "Nllb legacy": True}.items():
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder)
            (place / SPM).write_bytes(merges)
            options = {"extra_special_tokens": FEW, "legacy_behaviour": legacy}
            transformers.NllbTokenizer.from_pretrained(place, **options).save_pretrained(place)
            found[name] = {file: (place / file).read_bytes() for file in ("tokenizer.json", "tokenizer_config.json")}
    return found


def main() -> None:
    pairs = {"Nllb": ("eng_Latn", "ron_Latn"), "M2M100": ("en", "ro"), "PLBart": ("java", "en_XX")}
    golden = {"sources": SOURCES, "targets": TARGETS, "families": {}}
    golden["origin"] = f"transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}"
    for name, files in folders().items():
        source, target = pairs.get(name.split()[0], ("en_XX", "ro_RO"))
        with tempfile.TemporaryDirectory() as folder:
            for file, content in files.items():
                (pathlib.Path(folder) / file).write_bytes(content)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, src_lang=source, tgt_lang=target)
        both = tokenizer(SOURCES, text_target=TARGETS)
        golden["families"][name] = {
            "files": {file: base64.b64encode(content).decode() for file, content in files.items()},
            "source": source,
            "target": target,
            "input_ids": both["input_ids"],
            "labels": both["labels"],
            "code": tokenizer.convert_tokens_to_ids(f"__{target}__" if name.startswith(("M2M", "PLBart")) else target),
        }
        print(name, len(tokenizer), both["input_ids"][-1], both["labels"][-1])
    (HERE / "languages.json").write_text(json.dumps(golden, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

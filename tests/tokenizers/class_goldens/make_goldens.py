"""Make classes.json: tiny vocabularies in the files of published models, and transformers' encodings with each of their classes.

    pip install transformers==5.24.0 tokenizers==0.23.3 sentencepiece
    python tests/tokenizers/class_goldens/make_goldens.py

Three classes do not read these files as their models were trained. XGLMTokenizer is given its vocabulary; RemBertTokenizer's answers are
those after saving; BlenderbotTokenizer's texts end with </s> (id 2) as in its models' training. No text has white space but single
spaces between words: sentencepiece folds it, transformers does not.
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
    "El café está aquí. Ärger im Süden.",
] * 8
TEXTS = [
    "",
    "In the beginning God created.",
    "LIGHT, void; 1,000 don't``x''",
    "café ☃ Ärger",
    "a<mask>b</s>c[MASK]d[SEP]e",
    "a<mask_1>b<mask_2>c<unk_2>d<unk>e",
    "a<madeupword3>b<|endoftext|>d<pad>e",
]
SPACED = ["God\nsaid\n\n\tlight!  x ", "cafe\u0301 I'LL 123 10's", " don't   there's\r\n\r\n?"]
PAIRS = [("God said", "Let there be light: and"), ("", "void")]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>", "<|padding|>"]


def sentencepieces(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=66,
        normalization_rule_name="identity",
        minloglevel=3,
        **options,
    )
    return model.getvalue()


def files() -> dict[str, bytes]:
    """Name -> vocabulary; the byte-level one serves several classes."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(LINES, vocab_size=300, special_tokens=SPECIALS, show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        found = {pathlib.Path(path).name: pathlib.Path(path).read_bytes() for path in trained.save_model(folder)}
    bert = {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"], "pad_id": 0}
    names = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    return found | {
        "fairseq": sentencepieces(),
        "pegasus": sentencepieces(pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
        "bigbird": sentencepieces(eos_id=1, bos_id=2, unk_id=3, **bert),
        "rembert": sentencepieces(unk_id=2, bos_id=1, eos_id=-1, **bert),
        "deberta": sentencepieces(pad_id=0, bos_id=1, eos_id=2, unk_id=3, **names),
    }


BYTES = {"vocab.json": "vocab.json", "merges.txt": "merges.txt"}
FAIRSEQ = {"sentencepiece.bpe.model": "fairseq"}
# Model type -> names of its files, settings.
CASES: dict[str, tuple[dict[str, str], dict[str, object]]] = {
    "pegasus": ({"spiece.model": "pegasus"}, {}),
    "big_bird": ({"spiece.model": "bigbird"}, {}),
    "rembert": ({"sentencepiece.model": "rembert"}, {}),
    "camembert": (FAIRSEQ, {}),
    "xglm": (FAIRSEQ, {}),
    "plbart": (FAIRSEQ, {}),
    "deberta-v2": ({"spm.model": "deberta"}, {"do_lower_case": True, "split_by_punct": True}),
    "gpt_neox": (BYTES, {"tokenizer_class": "GPTNeoXTokenizer"}),
    "qwen3": (BYTES, {"tokenizer_class": "Qwen2Tokenizer"}),
    "blenderbot": (BYTES, {}),
}


def open_case(model_type: str, contents: dict[str, bytes]) -> transformers.PreTrainedTokenizerBase:
    if model_type == "xglm":
        model = sentencepiece.SentencePieceProcessor(model_proto=contents["sentencepiece.bpe.model"])
        pieces = [(model.id_to_piece(number), model.get_score(number)) for number in range(3, len(model))]
        head, tail = ("<s>", "<pad>", "</s>", "<unk>"), (f"<madeupword{number}>" for number in range(7))
        special = [[(name, 0.0) for name in names] for names in (head, tail)]
        return transformers.XGLMTokenizer(vocab=[*special[0], *pieces, *special[1]])
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            (pathlib.Path(folder) / name).write_bytes(content)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        if model_type == "rembert":
            tokenizer.save_pretrained(folder)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer


def main() -> None:
    pool, cases = files(), {}
    for model_type, (names, settings) in CASES.items():
        contents = {name: pool[source] for name, source in names.items()}
        contents["config.json"] = json.dumps({"model_type": model_type}).encode()
        contents["tokenizer_config.json"] = json.dumps(settings).encode()
        tokenizer = open_case(model_type, contents)
        texts = TEXTS + SPACED * (names is BYTES)
        rows = [dict(tokenizer(text)) for text in texts] + [dict(tokenizer(*pair)) for pair in PAIRS]
        if model_type == "blenderbot":
            rows = [{name: [*row, 2 if name == "input_ids" else 1] for name, row in one.items()} for one in rows]
        cases[model_type] = {
            "files": names,
            "settings": settings,
            "size": len(tokenizer),
            "roles": {
                role: number
                for role in "bos eos unk sep pad cls mask".split()
                if (number := getattr(tokenizer, f"{role}_token_id")) is not None
            },
            "side": tokenizer.padding_side,
            "texts": texts,
            "ids": [row["input_ids"] for row in rows],
            "types": [row["token_type_ids"] for row in rows] if "token_type_ids" in rows[0] else None,
            "decoded": [tokenizer.decode(row["input_ids"]) for row in rows],
            "skipped": [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows],
        }
    golden = {
        "origin": f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, "
        f"sentencepiece {sentencepiece.__version__}; make_goldens.py beside this file",
        "files": {name: base64.b64encode(content).decode() for name, content in pool.items()},
        "pairs": PAIRS,
        "cases": cases,
    }
    (HERE / "classes.json").write_text(json.dumps(golden, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

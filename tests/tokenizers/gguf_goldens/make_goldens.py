"""Make the files next to this one: small vocabularies, and the ids that transformers 5.24 reads from a GGUF file with them.

    PYTHONPATH=. python tests/tokenizers/gguf_goldens/make_goldens.py   # with gguf 0.19, transformers 5.24, sentencepiece, tokenizers

transformers knows no rule for some values of tokenizer.ggml.pre; their ids are those of the parts of the library tokenizers that the
models' own tokenizer.json files have (SmolLM, StarCoder2; Falcon: https://github.com/ggml-org/llama.cpp/issues/3502).
"""

from __future__ import annotations

import io
import json
import pathlib
import tempfile
from typing import Any

import gguf
import sentencepiece
import transformers

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).resolve().parent
TEXTS = [
    "Hello world", "  leading spaces", "trailing  ", "tabs\tand\nnew\n\nlines \n x", "don't I'VE we'Ll", "3 33 333 3333 1,234.56",
    "Привет, мир!", "你好，世界。天気", "مرحبا بالعالم", "हिन्दी भाषा", "e\u0301 vs é ½ ² ①", "🚀🇩🇪👩‍👩‍👧", "<|im_start|>user\nhi<|im_end|>",
    "a<s>b</s> c <pad>", "x  y   z", "CamelCaseWord HTTPServer", "mixed123abc456", "____----====", "\u00a0nbsp\u2003em", " ", "\n",
    "<think>ok</think>",
]  # fmt: skip
CORPUS = [
    *TEXTS,
    "the quick brown fox jumps over the lazy dog and the cat",
    "I've been told he's there 12 123 1234",
] * 4
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
ADDED = {
    "<|im_start|>": CONTROL,
    "<|im_end|>": CONTROL,
    "<think>": USER_DEFINED,
    "</think>": USER_DEFINED,
    "[PAD9]": UNUSED,
}
KNOWN = ("llama-bpe", "qwen2", "gpt-2", "default", "tekken", "gpt-4o", "qwen35")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
PARTS = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), BYTES],
    "falcon": [
        pre_tokenizers.Punctuation("contiguous"),
        BYTES,
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ],
}


def bytes_vocabulary() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([BYTES])
    trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=BYTES.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = {"<s>": CONTROL, "</s>": CONTROL, "<pad>": CONTROL, **ADDED}
    return {
        "model": "gpt2",
        "tokens": [*tokens, *special],
        "token_type": [1] * len(tokens) + list(special.values()),
        "merges": [" ".join(pair) for pair in model["merges"]],
        **{f"{name}_token_id": len(tokens) + i for i, name in enumerate(("bos", "eos", "padding"))},
    }


def pieces_vocabulary(kind: str, added: dict[str, int], size: int, **options: Any) -> dict[str, Any]:
    model = io.BytesIO()
    options = (
        dict(character_coverage=1.0, hard_vocab_limit=False, minloglevel=2, vocab_size=size, pad_id=0, unk_id=3)
        | options
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type=kind, **options
    )
    read = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = (("unknown", 2), ("control", 3), ("unused", 5), ("byte", 6))
    ids = range(read.vocab_size())
    types = [next((number for name, number in kinds if getattr(read, f"is_{name}")(i)), 1) for i in ids]
    names = {"bos": read.bos_id(), "eos": read.eos_id(), "unknown": read.unk_id(), "padding": read.pad_id()}
    return {
        "tokens": [read.id_to_piece(i) for i in ids] + list(added),
        "scores": [read.get_score(i) for i in ids] + [-1000.0] * len(added),
        "token_type": types + list(added.values()),
        **{f"{name}_token_id": number for name, number in names.items() if number >= 0},
    }


def write(path: pathlib.Path, architecture: str, keys: dict[str, Any]) -> None:
    """Write a file without tensors; transformers needs some sizes of the architecture."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        name, add = f"tokenizer.ggml.{key}", {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        writer.add_array(name, value) if isinstance(value, list) else add[type(value)](name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def ids_of(architecture: str, keys: dict[str, Any]) -> list[list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder) / "a.gguf", architecture, keys)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="a.gguf")
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def main() -> None:
    vocabulary = bytes_vocabulary()
    ids = {pre: ids_of("llama", {**vocabulary, "pre": pre, "add_bos_token": pre == "llama-bpe"}) for pre in KNOWN}
    for pre, parts in PARTS.items():
        tokenizer = Tokenizer(
            models.BPE(
                {text: i for i, text in enumerate(vocabulary["tokens"])},
                [tuple(one.split(" ")) for one in vocabulary["merges"]],
            )
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
        pairs = list(zip(vocabulary["tokens"], vocabulary["token_type"], strict=True))
        tokenizer.add_special_tokens([text for text, kind in pairs if kind == CONTROL])
        tokenizer.add_tokens([text for text, kind in pairs if kind == USER_DEFINED])
        ids[pre] = [tokenizer.encode(text).ids for text in TEXTS]
    dump("bytes.json", vocabulary, ids)

    options = dict(normalization_rule_name="identity", remove_extra_whitespaces=False, byte_fallback=True)
    vocabulary = pieces_vocabulary("bpe", ADDED, 420, **options, bos_id=1, eos_id=2)
    vocabulary |= {"model": "llama", "pre": "default"}
    dump("pieces.json", vocabulary, {name: ids_of(name, vocabulary) for name in ("llama", "phi3")})

    added = {"  ": USER_DEFINED, "   ": USER_DEFINED, **ADDED}
    vocabulary = pieces_vocabulary("bpe", added, 420, **options, add_dummy_prefix=False, eos_id=1, bos_id=2)
    vocabulary |= {"model": "llama", "pre": "default", "add_space_prefix": False, "add_bos_token": True}
    dump("spaces.json", vocabulary, {"gemma2": ids_of("gemma2", vocabulary), "gemma3": ids_of("gemma3", vocabulary)})

    padding = {f"[PAD{i}]": UNUSED for i in range(110)}
    vocabulary = pieces_vocabulary(
        "unigram", padding, 160, normalization_rule_name="identity", eos_id=1, unk_id=2, bos_id=-1
    )
    vocabulary |= {"model": "t5", "pre": "default", "add_space_prefix": True, "remove_extra_whitespaces": True}
    dump("unigram.json", vocabulary, {"t5": ids_of("t5", vocabulary)})


def dump(name: str, vocabulary: dict[str, Any], ids: dict[str, list[list[int]]]) -> None:
    content = {"versions": {"transformers": transformers.__version__, "gguf": "0.19.0"}, "vocabulary": vocabulary}
    text = json.dumps(content | {"texts": TEXTS, "ids": ids}, ensure_ascii=False, separators=(",", ":"))
    (HERE / name).write_text(text + "\n")


if __name__ == "__main__":
    main()

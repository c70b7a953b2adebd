"""Tokenizers of GGUF files: ids equal those that transformers reads from the same vocabulary (gguf_goldens/make_goldens.py)."""

from __future__ import annotations

import io
import json
import pathlib
from typing import Any

import pytest
import sentencepiece

from helpers.gguf_files import write_gguf
from lm_research.errors import TokenizerError, UnsupportedTokenizerError
from lm_research.tokenizers.chat_template import chat_template
from lm_research.tokenizers.gguf_tokenizer import PATTERNS
from lm_research.tokenizers.loading import load_tokenizer, tokenizer_from_files
from lm_research.tokenizers.sentencepiece_model import read_model, write_model

GOLDENS = pathlib.Path(__file__).parent / "gguf_goldens"
CASES = [
    (file.stem, name) for file in sorted(GOLDENS.glob("*.json")) for name in json.loads(file.read_text("utf-8"))["ids"]
]


def load(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{name}.json").read_text("utf-8"))


def write(path: pathlib.Path, keys: dict[str, Any], architecture: str = "llama", **more: Any) -> pathlib.Path:
    named = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    write_gguf(path, {"general.architecture": architecture, **named, **more}, {})
    return path


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_ids_equal_those_of_transformers(name: str, variant: str, tmp_path: pathlib.Path) -> None:
    golden = load(name)
    by_pre = {"pre": variant, "add_bos_token": variant == "llama-bpe"} if name == "bytes" else {}
    keys = {**golden["vocabulary"], **by_pre}
    tokenizer = load_tokenizer(write(tmp_path / "a.gguf", keys, "llama" if by_pre else variant))
    for text, ids in zip(golden["texts"], golden["ids"][variant], strict=True):
        assert tokenizer(text)["input_ids"][0].tolist() == ids, text
    (tmp_path / "saved").mkdir()
    tokenizer.save_files(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert all((again(text)["input_ids"] == tokenizer(text)["input_ids"]).all() for text in golden["texts"])


@pytest.mark.parametrize("model_type", ["llama", "mistral", "mixtral", "ministral", "phi3"])
def test_a_sentencepiece_model_without_a_class_is_llamas(model_type: str, tmp_path: pathlib.Path) -> None:
    golden = load("pieces")
    model = load_tokenizer(write(tmp_path / "a.gguf", golden["vocabulary"], "phi3")).files["tokenizer.model"]
    config = json.dumps({"model_type": model_type}).encode()
    tokenizer = tokenizer_from_files({"tokenizer.model": model, "config.json": config}, "here")
    for text, ids in zip(golden["texts"], golden["ids"]["phi3"], strict=True):
        assert tokenizer(text)["input_ids"][0].tolist() == ids, text


def test_special_tokens_and_the_template_are_those_of_the_file(tmp_path: pathlib.Path) -> None:
    keys = load("bytes")["vocabulary"]
    template = "{{ messages[0].content }}"
    path = write(tmp_path / "a.gguf", {**keys, "pre": "qwen2"}, **{"tokenizer.chat_template": template})
    tokenizer = load_tokenizer(path)
    assert chat_template(tokenizer) == template
    names = {role: tokenizer.token_name(number) for role, number in tokenizer.roles.items()}
    assert (names["bos"], names["eos"], names["pad"]) == ("<s>", "</s>", "<pad>")
    # The space between two tokens that the file marks as control is a token of its own.
    assert [tokenizer.token_name(one) for one in tokenizer("<|im_end|> <s>")["input_ids"][0]] == [
        "<|im_end|>",
        "Ġ",
        "<s>",
    ]


def test_wordpiece_has_its_continuations_back(tmp_path: pathlib.Path) -> None:
    """llama.cpp's conversion (conversion/bert.py) removes ## and puts ▁ before other tokens; ids by hand."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2581play", "ing", "\u2581the", "\u2581."]
    kinds = [3, 3, 3, 3, 3, 1, 1, 1, 1]
    tokenizer = load_tokenizer(write(tmp_path / "a.gguf", {"model": "bert", "tokens": tokens, "token_type": kinds}))
    assert tokenizer("The playing. [MASK] zebra")["input_ids"][0].tolist() == [2, 7, 5, 6, 8, 4, 1, 3]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pre": "kimi-k2"}, UnsupportedTokenizerError, "tokenizer.ggml.pre is 'kimi-k2'"),
        ({"model": "rwkv"}, UnsupportedTokenizerError, "tokenizer.ggml.model is 'rwkv'"),
        ({"tokens": ["a", "a"]}, TokenizerError, "token twice"),
        ({"token_type": [1]}, TokenizerError, "token_type has 1 entries"),
        ({"merges": ["a b"]}, TokenizerError, "damaged"),
        ({"bos_token_id": "x"}, TokenizerError, "bos_token_id is 'x'"),
    ],
)
def test_other_tokenizers_are_refused_by_key(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: pathlib.Path
) -> None:
    tokens = {"tokens": ["c", "d", "cd"], "token_type": [1, 1, 1], "merges": ["c d"]}
    keys = {"model": "gpt2", "pre": "gpt-2", **tokens} | changes
    with pytest.raises(error, match=message):
        load_tokenizer(write(tmp_path / "a.gguf", keys))


def test_damaged_files_and_missing_rules_are_reported(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.gguf", load("bytes")["vocabulary"])
    load_tokenizer(path)
    assert "has no tokenizer.ggml.pre" in caplog.text
    content = path.read_bytes()
    for size in (0, 30, 200, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(TokenizerError, match="a.gguf cannot be read"):
            load_tokenizer(path)


def test_all_rules_are_accepted(tmp_path: pathlib.Path) -> None:
    keys = {"model": "gpt2", "tokens": ["1", "2", "12"], "token_type": [1, 1, 1], "merges": ["1 2"]}
    for pre in PATTERNS:
        ids = load_tokenizer(write(tmp_path / "a.gguf", {**keys, "pre": pre, "add_bos_token": False})).encode("12")
        assert ids in ([2], [0, 1]), pre


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_written_sentencepiece_model_is_read_as_it_was(kind: str) -> None:
    original = io.BytesIO()
    texts = iter(["the quick brown fox", "½ and ﬁ or é", "jumps over the lazy dog"] * 3)
    options = dict(model_type=kind, vocab_size=60, hard_vocab_limit=False, byte_fallback=kind == "bpe", minloglevel=2)
    options["vocab_size"] += 256 if kind == "bpe" else 0
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=original, **options)
    model = read_model(original.getvalue())
    assert model.charsmap and read_model(write_model(model)) == model
    first, second = (
        sentencepiece.SentencePieceProcessor(model_proto=one) for one in (original.getvalue(), write_model(model))
    )
    for text in ("the ﬁrst  ½ fox", "Ω é"):
        assert first.encode(text) == second.encode(text)

"""Tokenizer classes from the files of published models, against transformers on the same files (class_goldens/make_goldens.py)."""

from __future__ import annotations

import base64
import json
import pathlib

import pytest

import tokenizers
from lm_research.errors import TokenizerError
from lm_research.tokenizers.loading import load_tokenizer, tokenizer_from_files

GOLDEN = json.loads((pathlib.Path(__file__).parent / "class_goldens" / "classes.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model_type", sorted(GOLDEN["cases"]))
def test_published_files_are_read_as_by_transformers(model_type: str, tmp_path: pathlib.Path) -> None:
    case = GOLDEN["cases"][model_type]
    files = {name: base64.b64decode(GOLDEN["files"][source]) for name, source in case["files"].items()}
    files["config.json"] = json.dumps({"model_type": model_type}).encode()
    files["tokenizer_config.json"] = json.dumps(case["settings"]).encode()
    first = tokenizer_from_files(files, model_type)
    first.save_files(tmp_path)
    for tokenizer in (first, load_tokenizer(tmp_path)):
        assert tokenizer.size == case["size"] and tokenizer.padding_side == case["side"]
        assert case["roles"].items() <= tokenizer.roles.items()
        assert ("mask" in tokenizer.roles) == ("mask" in case["roles"])
        inputs = [(text,) for text in case["texts"]] + GOLDEN["pairs"]
        for number, (texts, ids) in enumerate(zip(inputs, case["ids"], strict=True)):
            row = tokenizer(*texts)
            assert row["input_ids"][0].tolist() == ids, texts
            types = row["token_type_ids"][0].tolist() if "token_type_ids" in row else None
            assert types == (case["types"] and case["types"][number])
            assert tokenizer.decode(ids, skip_special_tokens=False) == case["decoded"][number]
            assert tokenizer.decode(ids) == case["skipped"][number]


def saved(settings: dict[str, object], template: bool = True) -> dict[str, bytes]:
    """The files of a tokenizer of two words that marks the second text of a pair."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "a": 1, "[CLS]": 2, "[SEP]": 3}, "<s>"))
    backend.add_special_tokens(["<s>", "[CLS]", "[SEP]"])
    if template:
        backend.post_processor = tokenizers.processors.TemplateProcessing("$A", "$A $B:1", [])
    return {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}


@pytest.mark.parametrize(
    ("settings", "ids", "types"),
    [
        ({"tokenizer_class": "TokenizersBackend"}, [1], False),
        ({"tokenizer_class": "ParakeetTokenizer"}, [1], False),
        ({"tokenizer_class": "TokenizersBackend", "model_input_names": ["input_ids", "token_type_ids"]}, [1], True),
        ({}, [1], True),
        ({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "add_bos_token": True}, [1], False),
        ({"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "add_bos_token": True}, [1], False),
        ({"tokenizer_class": "RemBertTokenizer"}, [2, 1, 3], False),
    ],
)
def test_tokenizer_json_and_its_class_agree_as_in_transformers(
    settings: dict[str, object], ids: list[int], types: bool
) -> None:
    """Expected values: transformers 5.24.0, but for a file without a class, whose post-processor decides.

    There add_bos_token is not applied to a tokenizer.json, and RemBERT's file lacks the special tokens around a text.
    """
    tokenizer = tokenizer_from_files(saved(settings), "here")
    assert tokenizer("a")["input_ids"][0].tolist() == ids
    assert tokenizer.uses_types == types


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    [
        ("opt", "GPT2Tokenizer"),
        ("phi", "GPT2Tokenizer"),
        ("starcoder2", "GPT2Tokenizer"),
        ("mpt", "GPTNeoXTokenizer"),
        ("qwen2_moe", "Qwen2Tokenizer"),
        ("gte", "XLMRobertaTokenizer"),
    ],
)
def test_a_model_type_names_its_class(model_type: str, class_name: str) -> None:
    """The classes are those of transformers 5.24's TOKENIZER_MAPPING_NAMES."""
    pool = {name: base64.b64decode(content) for name, content in GOLDEN["files"].items()}
    files = {"vocab.json": pool["vocab.json"], "merges.txt": pool["merges.txt"], "spiece.model": pool["fairseq"]}
    tokenizer = tokenizer_from_files(files | {"config.json": json.dumps({"model_type": model_type}).encode()}, "here")
    assert json.loads(tokenizer.files["tokenizer_config.json"])["tokenizer_class"] == class_name


@pytest.mark.parametrize(
    ("model_type", "settings", "problem"),
    [
        (
            "roformer",
            {"tokenizer_class": "RoFormerTokenizerFast"},
            r"RoFormerTokenizerFast is not supported.*rjieba.*give .* input_ids",
        ),
        ("roformer", {}, r"roformerTokenizer is not supported.*jieba"),
    ],
)
def test_a_class_that_tokenizer_json_cannot_express_is_refused_by_name(
    model_type: str, settings: dict[str, object], problem: str
) -> None:
    files = saved(settings) | {"config.json": json.dumps({"model_type": model_type}).encode()}
    with pytest.raises(TokenizerError, match=problem):
        tokenizer_from_files(files, "here")


@pytest.mark.parametrize(("name", "key", "value"), [("Pegasus", "offset", 0), ("PLBart", "language_codes", "some")])
def test_a_numbering_that_is_not_supported_is_refused_by_key(name: str, key: str, value: object) -> None:
    """BigBird-Pegasus numbers its pieces without an offset."""
    files = {"spiece.model": base64.b64decode(GOLDEN["files"]["pegasus"])}
    files["tokenizer_config.json"] = json.dumps({"tokenizer_class": f"{name}Tokenizer", key: value}).encode()
    with pytest.raises(TokenizerError, match=f"{key} .*is '?{value}"):
        tokenizer_from_files(files, "here")

"""Rules of tokenizer.json that the library's readers apply, one by one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lm_research.errors import TokenizerError
from lm_research.tokenizers import hf_text, spec


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab": [["a", -5.0]]}, None),
        ({"vocab": [["a", -5.0]], "unk_id": 0}, None),
        ({"vocab": [["a", -5.0]], "unk_id": 1}, "unk_id is 1, but vocab has only 1 pieces"),
        ({"vocab": {}}, "has no tokens"),
        ({"vocab": {"a": 0}, "merges": [["a", "b"]]}, None),
        ({"vocab": {"a": 0}, "merges": [["a", "##b"], ["##b", "##c"]], "continuing_subword_prefix": "##"}, None),
        ({"vocab": {"a": 0}, "merges": ["a ##b"], "continuing_subword_prefix": "##"}, None),
        ({"vocab": {"a": 0}, "merges": [["##a", "b"]], "continuing_subword_prefix": "##"}, "merges has 'b' in second"),
        ({"vocab": {"a": 0}, "merges": ["##a b"], "continuing_subword_prefix": "##"}, "merges has 'b' in second"),
        ({"vocab": {"a": 0}, "merges": [[]], "continuing_subword_prefix": "##"}, "merges has '' in second"),
    ],
)
def test_models_that_are_safe_for_the_library(changes: dict[str, Any], reason: str | None) -> None:
    if reason is None:
        spec.check_spec({"model": changes}, "a.json")
        return
    with pytest.raises(TokenizerError, match=f"a.json.*{reason}"):
        spec.check_spec({"model": changes}, "a.json")


def test_a_model_may_have_only_added_tokens() -> None:
    spec.check_spec({"model": {"vocab": {}}, "added_tokens": [{"id": 0, "content": "a", "special": False}]}, "a.json")


@pytest.mark.parametrize(
    ("processor", "highest"),
    [
        (None, 0),
        ("ids", 0),
        ({"sep": ["[SEP]", 7], "cls": ["[CLS]", 5]}, 7),  # of BertProcessing
        ({"special_tokens": {"x": {"id": "x", "ids": [3, 9], "tokens": ["a", "b"]}}}, 9),  # of TemplateProcessing
        ({"processors": [{"sep": ["a", 2]}, {"ids": [4]}]}, 4),
        ({"tokens": [{"ids": [99]}], "ids": [True, 1]}, 1),
        ({"sep": ["a", 2, 3]}, 0),
    ],
)
def test_ids_around_texts(processor: Any, highest: int) -> None:
    spec.check_special_ids({"post_processor": processor}, highest + 1, "a.json")
    if highest:
        with pytest.raises(
            TokenizerError, match=f"puts the id {highest} around texts, but the tokens have the ids 0 to"
        ):
            spec.check_special_ids({"post_processor": processor}, highest, "a.json")


@pytest.mark.parametrize(("length", "shown"), [(100, "x" * 100), (101, "x" * 97 + "...")])
def test_long_patterns_are_cut_in_messages(length: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pattern: str) -> None:
        raise ValueError("it is odd")

    monkeypatch.setattr(spec, "check_pattern", refuse)
    with pytest.raises(TokenizerError) as caught:
        spec._check_rules([{"pattern": {"Regex": "x" * length}}], "a.json")
    assert str(caught.value).startswith(f"a.json has the regular expression {shown!r}: it is odd.")


def test_characters_of_bytes_are_those_of_gpt2() -> None:
    """Radford et al.'s encoder.py: printable characters of Latin-1 are themselves, the other 68 are U+0100 and following, in order."""
    found = hf_text._byte_of()
    assert sorted(found.values()) == list(range(256)) and len(found) == 256
    known = {"!": 0x21, "~": 0x7E, "¡": 0xA1, "¬": 0xAC, "®": 0xAE, "ÿ": 0xFF}
    known |= {"Ā": 0x00, "Ċ": 0x0A, "Ġ": 0x20, "ġ": 0x7F, "Ģ": 0x80, "ł": 0xA0, "Ń": 0xAD}
    assert {character: found[character] for character in known} == known


def test_special_tokens_of_a_unigram_model_get_names_that_no_text_has() -> None:
    """The other added tokens stay; a model of merges is unchanged, as it finds no special token by itself."""
    added = [{"id": 1, "content": "</s>", "special": True}, {"id": 3, "content": "word", "special": False}]
    unigram = {"model": {"vocab": [["a", -1.0], ["</s>", 0.0]]}, "added_tokens": added, "post_processor": {"sep": 1}}
    found = json.loads(hf_text.literal_form(unigram, [1, 3]))
    assert found["model"]["vocab"] == [["a", -1.0], ["\U0010ffff1", 0.0]]
    assert found["added_tokens"] == added[1:] and found["post_processor"] is None
    assert unigram["model"]["vocab"][1][0] == "</s>"
    merges = {"model": {"vocab": {"a": 0}}, "added_tokens": added}
    assert json.loads(hf_text.literal_form(merges, [1])) == merges


def test_no_space_is_put_before_a_text() -> None:
    """Every rule that would is dropped or told not to, also inside of sequences."""
    rules = {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "NFC"}]},
        "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always", "replacement": "▁"},
        "decoder": {"type": "Metaspace", "prepend_scheme": "always"},
    }
    assert hf_text.without_prefix_space(rules) == {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never", "replacement": "▁"},
        "decoder": rules["decoder"],
    }
    bytes_ = {
        "normalizer": {"type": "Prepend", "prepend": "x"},
        "pre_tokenizer": {"type": "ByteLevel", "trim_offsets": True},
    }
    assert hf_text.without_prefix_space(bytes_) == {
        "normalizer": bytes_["normalizer"],
        "pre_tokenizer": {"type": "ByteLevel", "trim_offsets": True, "add_prefix_space": False},
    }

"""Values and damage that tokenizer files must not have: one paragraph that names file and key, whatever the underlying libraries do with them.

Each case ended in a traceback, a panic, a crash, gigabytes or an endless search before. What is accepted is what transformers 5.24.0
accepts, run on the same folders.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import pathlib
import struct
from typing import Any

import numpy as np
import pytest

from helpers import opus_folder
from helpers.hf_folders import files_of
from lm_research.errors import TokenizerError
from lm_research.tokenizers.loading import load_tokenizer, tokenizer_from_files
from lm_research.tokenizers.patterns import check_pattern
from lm_research.tokenizers.sentencepiece_model import check_charsmap, read_model
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

DEEP = json.loads("[" * 200 + "]" * 200)


@functools.cache
def saved(family: str) -> dict[str, bytes]:
    """A family's files as this library saves them, tokenizer.json among them."""
    return tokenizer_from_files(files_of(family), family).files


def changed(files: dict[str, bytes], name: str, place: str, value: Any) -> dict[str, bytes]:
    """Return the files with another value at a path such as "model.vocab.0"."""
    whole = node = json.loads(files.get(name, b"{}"))
    *outer, last = [int(part) if part.isdigit() and len(part) < 3 else part for part in place.split(".")]
    for part in outer:
        node = node[part]
    node[last] = value
    return files | {name: json.dumps(whole).encode()}


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("tokenizer_config.json", "truncation_side", "both"),
        ("tokenizer_config.json", "padding_side", 1),
        ("tokenizer_config.json", "model_max_length", float("nan")),
        ("tokenizer_config.json", "model_max_length", -1),
        ("tokenizer_config.json", "model_max_length", "512"),
        ("tokenizer_config.json", "model_input_names", 3),
        ("tokenizer_config.json", "mask_token", 5),
        ("tokenizer_config.json", "mask_token", {"text": "a"}),
        ("tokenizer_config.json", "mask_token", {"content": ["a"]}),
        ("tokenizer_config.json", "tokenizer_class", 1.5),
        ("tokenizer_config.json", "tokenizer_class", "a" * 100_000),
        ("tokenizer_config.json", "additional_special_tokens", "abc"),
        ("tokenizer_config.json", "additional_special_tokens", [None]),
        ("tokenizer_config.json", "extra_special_tokens", True),
        ("tokenizer_config.json", "added_tokens_decoder", {"x": {"content": "a"}}),
        ("tokenizer_config.json", "added_tokens_decoder", {"900000000": {"content": "a"}}),
        ("tokenizer_config.json", "do_lower_case", "yes"),
        ("tokenizer_config.json", "extra_ids", 10**5),
        ("tokenizer_config.json", "padding_side", DEEP),
        ("special_tokens_map.json", "unk_token", []),
        ("added_tokens.json", "a", 2**31),
        ("config.json", "model_type", 2**40),
        ("sentence_bert_config.json", "do_lower_case", [1]),
    ],
)
def test_settings_of_the_wrong_type_are_named(name: str, place: str, value: Any) -> None:
    with pytest.raises(TokenizerError) as caught:
        tokenizer_from_files(changed(files_of("bert"), name, place, value), "here")
    message = str(caught.value)
    assert name in message and "\n" not in message and len(message) < 1000
    assert place in message or name == "added_tokens.json" or value is DEEP


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("added_tokens.0.id", 2**31, "added_tokens.*4194303"),
        ("added_tokens.0.content", 5, "added_tokens"),
        ("model.vocab.the", 2**31 - 1, "vocab.*4194303"),
        ("model.vocab", [], "unk|vocab|damaged"),
        ("model.max_input_chars_per_word", -1, "max_input_chars_per_word"),
        ("model.dropout", float("nan"), "dropout"),
        ("post_processor.special_tokens.[CLS].ids", [2**31], "ids"),
        ("post_processor.special_tokens.[CLS].ids", [10**6], "puts the id 1000000 around texts"),
        ("post_processor.special_tokens", {}, r"has '\[CLS\]', which special_tokens lacks"),
        ("post_processor.single.0.SpecialToken.type_id", 2**31, "type_id"),
        ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "a"}, "pattern"),
        ("normalizer", {"type": "Replace", "pattern": {"String": 1}, "content": "a"}, "pattern"),
        (
            "normalizer",
            {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "a"},
            "regular expression.*exponential time",
        ),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a"}, "content": "a"}, "damaged.*Oniguruma"),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Isolated", "invert": False},
            "exponential time",
        ),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "!"}, "precompiled_charsmap"),
        (
            "normalizer",
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\x04\0\0\0abcd\0").decode()},
            "point out of bounds",
        ),
        (
            "normalizer",
            {
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 30,
            },
            "1e",
        ),
        ("normalizer", {"type": "Prepend", "prepend": "q" * 10**7}, "prepend is 'qqq.*length <= 100"),
        ("model.continuing_subword_prefix", "#" * 10**6, "continuing_subword_prefix is '###"),
        ("decoder", DEEP, "nested"),
    ],
)
def test_values_that_the_rust_library_must_not_see(
    place: str, value: Any, reason: str, capfd: pytest.CaptureFixture
) -> None:
    with pytest.raises(TokenizerError, match=f"here/tokenizer.json.*{reason}"):
        tokenizer_from_files(changed(saved("bert"), "tokenizer.json", place, value), "here")
    assert capfd.readouterr().err == ""  # a panic writes there


def test_parts_of_words_that_lack_their_prefix(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(TokenizerError, match="merges has .* lacks continuing_subword_prefix"):
        tokenizer_from_files(
            changed(saved("gpt2"), "tokenizer.json", "model.continuing_subword_prefix", "#" * 50), "here"
        )
    assert capfd.readouterr().err == ""


def test_errors_that_occur_only_in_use_are_explained() -> None:
    """A unigram model without an unknown piece: the library raises once a text needs it."""
    files = changed(saved("t5"), "tokenizer.json", "model.unk_id", None)
    tokenizer = tokenizer_from_files(files, "here")
    for use in (tokenizer.encode, tokenizer):
        with pytest.raises(TokenizerError, match="The tokenizer here fails on a text"):
            use("\u4e2d")


def test_a_tokenizer_json_that_is_not_utf_8_is_damaged() -> None:
    content = saved("bert")["tokenizer.json"].replace(b'"the"', b'"th\xe5"')
    with pytest.raises(TokenizerError, match="tokenizer.json is not JSON.*utf-8"):
        tokenizer_from_files({"tokenizer.json": content}, "here")


@pytest.mark.parametrize(
    ("family", "place", "value", "first"),
    [
        ("llama", "add_bos_token", 1, 1),
        ("llama", "add_bos_token", None, 324),
        ("llama", "legacy", None, 324),
        ("bert", "strip_accents", None, 2),
        ("bert", "mask_token", "", 2),
        ("bert", "additional_special_tokens", None, 2),
        ("bert", "extra_special_tokens", None, 2),
        ("bert", "chat_template", None, 2),
        ("bert", "model_max_length", None, 2),
    ],
)
def test_what_transformers_accepts_is_accepted(family: str, place: str, value: Any, first: int) -> None:
    """First id of "The Cat", by transformers 5.24.0's AutoTokenizer; its Llama adds no <s> unless add_bos_token is set."""
    files = changed(files_of(family), "tokenizer_config.json", "add_bos_token", family != "llama" or place != "legacy")
    if family == "llama" and place == "legacy":
        files = changed(files, "tokenizer_config.json", "add_bos_token", False)
    tokenizer = tokenizer_from_files(changed(files, "tokenizer_config.json", place, value), family)
    assert tokenizer("The Cat")["input_ids"][0, 0] == first
    assert ("mask" in tokenizer.roles) == (family == "bert" and place != "mask_token")


# ---------------------------------------------------------------------------------------------- sentencepiece


def message(number: int, value: bytes) -> bytes:
    """A field of a protobuf that holds bytes, of fewer than 2 ** 14."""
    length = len(value)
    return (
        bytes([number << 3 | 2])
        + (bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7]))
        + value
    )


def piece(text: str, score: float = 0.0, sort: int = 1) -> bytes:
    return message(1, message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, sort]))


WHOLE = piece("<unk>", sort=2) + piece("a", -1.0)


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (WHOLE + piece("b", float("nan")), "piece 2 has the score nan"),
        (WHOLE + piece("b", float("inf")), "piece 2 has the score inf"),
        (WHOLE + piece("b", sort=9), "piece 2 has an unknown type"),
        (WHOLE + piece("b" * 9000), "piece 2 has 9000 characters"),
        (WHOLE[:-3], "not a sentencepiece model"),
        (WHOLE + b"\x0a" + b"\xff" * 40, "not a sentencepiece model"),
        (WHOLE + message(2, b"\xc0\x02\x07"), "unknown piece is out of range"),
        (WHOLE + message(3, message(2, b"\x04\0\0\0" + struct.pack("<I", 1 << 10) + b"\0")), "point out of bounds"),
        (WHOLE + message(5, message(2, b"\xff\xff\xff\xff")), "wrong length"),
    ],
)
def test_models_that_the_library_must_not_see(proto: bytes, reason: str) -> None:
    with pytest.raises(TokenizerError, match=f"my.model.*{reason}"):
        SentencePieceTokenizer.parse(proto, "my.model")
    with pytest.raises(TokenizerError, match=reason):
        tokenizer_from_files(opus_folder.files() | {"source.spm": proto, "config.json": b"{}"}, "here")


def test_a_complete_model_opens() -> None:
    assert SentencePieceTokenizer.parse(WHOLE, "my.model").encode("a")


def charsmap(units: dict[int, int], right: bytes = b"x\0") -> bytes:
    """Compiled rules of 256 units, of which those given are not 0."""
    trie = np.zeros(256, "<u4")
    trie[list(units)] = list(units.values())
    return struct.pack("<I", trie.nbytes) + trie.tobytes() + right


def test_compiled_rules_are_followed_to_their_ends() -> None:
    """Units of a trie in Darts-clone's format: label, 256 for a key's end, offset << 10; a right side's place has the top bit."""
    check_charsmap(b"")
    one = {0: 1 << 10, 1 ^ 97: 97 | 256 | (1 ^ 97 ^ 2) << 10, 2: 1 << 31}  # "a" becomes "x"
    check_charsmap(charsmap(one))
    for units, reason in (
        (one | {2: 1 << 31 | 2}, "right sides out of bounds"),
        (one | {2: 0}, "right sides out of bounds"),
        (one | {1 ^ 97: 97 | 256 << 10}, "point out of bounds"),
        ({0: 1 << 10, 1 ^ 97: 97 | (1 ^ 97 ^ 1) << 10}, "are cyclic or too large"),  # "a" after "a" after "a"
    ):
        with pytest.raises(ValueError, match=reason):
            check_charsmap(charsmap(units))
    with pytest.raises(ValueError, match="wrong length"):
        check_charsmap(charsmap(one, b"x"))


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_damage_anywhere_in_a_model_is_an_error_or_another_model(family: str) -> None:
    name = next(name for name in files_of(family) if name.endswith(".model"))
    proto, random = files_of(family)[name], np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(proto)
        for place in random.integers(len(proto), size=3):
            damaged[place] ^= 1 << int(random.integers(8))
        damaged = bytes(damaged[: random.integers(1, len(proto))] if random.random() < 0.3 else damaged)
        try:
            tokenizer = tokenizer_from_files(files_of(family) | {name: damaged}, "here")
        except TokenizerError as error:
            assert name in str(error) or "or it is truncated" in str(error)
        else:
            assert len(read_model(damaged).pieces) <= tokenizer.size
            assert all(0 <= token < tokenizer.size for token in tokenizer.encode("the cat \u4e2d"))


# ---------------------------------------------------------------------------------------------- patterns, paths


@pytest.mark.parametrize(
    "pattern",
    [
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2's
        r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",  # Llama 3's
        r" ?[^(\s|[.,!?])]+",  # BLOOM's: a class in a class
        r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",  # Chameleon's
        r"(?:\r?\n)+|[]a]+|(?:ab|cd)+",
    ],
)
def test_patterns_in_use_are_accepted(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a*)*",
        "([a-z]+)*$",
        "(a|aa)+$",
        r"(\s*\w*)+",
        "((a*)b?)*",
        "(?:a*){50}",
        "(?:x{1,999}){1,999}",
        "a{1,99999}",
        r"(?<x>a|b\g<x>c)",
        "([[:alpha:]]+[0-9]*)*",
        "(?:(?:a{1,100}){1,100}){1,100}",
    ],
)
def test_patterns_that_explode_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="repeats|calls"):
        check_pattern(pattern)


def test_what_is_not_a_file_does_not_block(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="tokenizer.json cannot be read: it is a named pipe"):
        load_tokenizer(tmp_path)
    for path in ("~nobody-here/a", "a" * 300, "a\0b"):
        with pytest.raises(TokenizerError, match="The tokenizer"):
            load_tokenizer(path)

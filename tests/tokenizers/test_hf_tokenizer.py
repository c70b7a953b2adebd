"""Tokenizers of Hugging Face folders against transformers on the same files (goldens/make_goldens.py)."""

from __future__ import annotations

import json
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest

from helpers.hf_folders import files_of, goldens, write_folder
from lm_research.errors import TokenizerError
from lm_research.tokenizers.hf_tokenizer import HFTokenizer
from lm_research.tokenizers.loading import load_tokenizer, tokenizer_from_files
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

FAMILIES = sorted(goldens()["families"])
TEXTS, PAIRS = goldens()["texts"], goldens()["pairs"]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def open_family(family: str, **settings: Any) -> HFTokenizer:
    files = files_of(family)
    if settings:
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
        files["tokenizer_config.json"] = json.dumps(config | settings).encode()
    return tokenizer_from_files(files, family)


def rows(batch: dict[str, np.ndarray]) -> dict[str, list]:
    """In the form of the goldens: `offsets` by transformers' name, one row of a batch of one."""
    assert all(value.dtype == np.int32 and len(value) == 1 for value in batch.values())
    return {name: value[0].tolist() for name, value in batch.items()}


def test_texts_and_pairs_match_transformers(family: str) -> None:
    tokenizer, expected = open_family(family), goldens()["families"][family]
    for number, text in enumerate(TEXTS):
        assert rows(tokenizer(text, return_offsets=True)) == expected["texts"][number], text
        assert tokenizer(text, add_special_tokens=False)["input_ids"][0].tolist() == expected["bare"][number], text
    for number, (first, second) in enumerate(PAIRS):
        assert rows(tokenizer(first, second)) == expected["pairs"][number]
        assert rows(tokenizer(first, second, truncation=True, max_length=11)) == expected["cut"][number]
    if padded := expected["batch"]["padded"]:
        batch = tokenizer(expected["batch"]["texts"], padding=True, truncation=True, max_length=9)
        assert {name: value.tolist() for name, value in batch.items()} == padded


def test_size_and_roles_match_transformers(family: str) -> None:
    tokenizer, expected = open_family(family), goldens()["families"][family]
    assert tokenizer.size == expected["size"] == len(tokenizer.token_bytes) == len(tokenizer.starts_word)
    named = {role: number for role, number in expected["roles"].items() if number is not None}
    assert named.items() <= tokenizer.roles.items()
    assert set(tokenizer.roles) - set(named) <= {"cls", "sep", "bos", "eos", "pad"}
    assert all(getattr(tokenizer, f"{role}_id") == number for role, number in tokenizer.roles.items())
    assert set(tokenizer.roles.values()) <= set(tokenizer.special_ids.tolist())
    assert not tokenizer.token_bytes[tokenizer.special_ids].any()
    assert not tokenizer.starts_word[tokenizer.special_ids].any()


def test_saved_files_open_as_the_same_tokenizer(family: str, tmp_path: pathlib.Path) -> None:
    first = open_family(family)
    first.save_files(tmp_path / "saved")
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} < first.files.keys()
    assert {path.name for path in (tmp_path / "saved").iterdir()} == first.files.keys()
    again = load_tokenizer(tmp_path / "saved")
    single = load_tokenizer(tmp_path / "saved" / "tokenizer.json")
    copied = pickle.loads(pickle.dumps(first))
    for other in (again, single, copied):
        assert other.digest == first.digest and other.roles == first.roles
        assert (other.uses_types, other.padding_side, other.max_length) == (
            first.uses_types,
            first.padding_side,
            first.max_length,
        )
        assert all(rows(other(text)) == rows(first(text)) for text in TEXTS)
    assert again.files == first.files


def test_text_cannot_name_a_special_token_when_it_is_only_text(family: str) -> None:
    """Calling the tokenizer finds them; encoding, which corpora are made with, does not."""
    tokenizer = open_family(family)
    allowed = {tokenizer.roles.get("unk")} - {tokenizer.roles.get("eos")}
    special = set(tokenizer.special_ids.tolist()) - allowed
    found = 0
    for text in TEXTS:
        assert not special & set(tokenizer.encode(text)), text
        called = tokenizer(text, add_special_tokens=False)["input_ids"][0].tolist()
        found += bool(special & set(called))
        if not special & set(called) and tokenizer.roles.get("unk") not in called:
            assert tokenizer.encode(text) == called
    assert found
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch([]) == []


def test_decoding_leaves_special_and_unknown_ids_out(family: str) -> None:
    tokenizer = open_family(family)
    ids = tokenizer.encode("in the beginning")
    around = [tokenizer.roles["eos"], *ids, tokenizer.pad_id, tokenizer.size, tokenizer.size + 100]
    assert tokenizer.decode(around) == tokenizer.decode(ids) == "in the beginning"
    assert tokenizer.pieces([tokenizer.size]) == [f"<{tokenizer.size}>"]
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.token_id(tokenizer.pieces([tokenizer.roles["eos"]])[0]) == tokenizer.roles["eos"]


@pytest.mark.parametrize("name", ["gpt2", "roberta"])
def test_byte_level_tokens_keep_everything(name: str) -> None:
    tokenizer = open_family(name)
    assert tokenizer.keeps_newlines
    for text in [*TEXTS, "God said:\n\n  light  \r\n"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    starts = tokenizer.starts_word[tokenizer.encode(" the earth was\nlight")]
    assert starts.sum() == 4 and starts[0]
    assert "".join(tokenizer.pieces(tokenizer.encode(" the\nearth"))) == "▁the⏎earth"


@pytest.mark.parametrize("name", ["t5", "xlm-roberta", "llama"])
def test_pieces_count_their_bytes_and_begin_words_at_spaces(name: str) -> None:
    tokenizer, text = open_family(name), "the earth was without form"
    ids = tokenizer.encode(text)
    assert tokenizer.token_bytes[ids].sum() == len(text) + 1  # with the space that they put before a text
    assert tokenizer.starts_word[ids].sum() == 5
    assert tokenizer.keeps_newlines == (name == "llama")


def test_llama_falls_back_to_bytes() -> None:
    tokenizer = open_family("llama")
    ids = tokenizer.encode("☃")
    assert tokenizer.pieces(ids[-3:]) == ["<0xE2>", "<0x98>", "<0x83>"] and tokenizer.decode(ids) == "☃"
    assert tokenizer.token_bytes[ids].sum() == 4


def test_wordpieces_count_the_space_before_a_word() -> None:
    tokenizer = open_family("bert")
    ids = tokenizer.encode("the lightest, god 神")
    names, counts = tokenizer.pieces(ids), tokenizer.token_bytes[ids].tolist()
    assert names[0] == "the" and counts[0] == 4
    assert counts[names.index(",")] == 1 and counts[names.index("神")] == 3
    (inner, *_) = [place for place, name in enumerate(names) if name.startswith("##")]
    assert counts[inner] == len(names[inner]) - 2
    assert tokenizer.starts_word[ids].tolist() == [not name.startswith("##") for name in names]


def test_masks_include_the_space_before_them() -> None:
    """As in the training of RoBERTa and XLM-R, and in the tokenizer.json files published with them."""
    for name in ("roberta", "xlm-roberta", "mbart", "albert"):
        tokenizer = open_family(name)
        mask = "[MASK]" if name == "albert" else "<mask>"
        spaced, close = (tokenizer(f"the{gap}{mask} light")["input_ids"].tolist() for gap in (" ", ""))
        assert spaced == close and tokenizer.mask_id in spaced[0], name


def test_options_of_tokenizer_config_are_followed() -> None:
    lower, upper = open_family("bert").encode("GOD"), open_family("bert", do_lower_case=False).encode("GOD")
    assert lower == open_family("bert").encode("god") != upper
    accents = open_family("bert", strip_accents=False)
    assert accents.encode("café") != open_family("bert").encode("café") == accents.encode("cafe")
    assert open_family("gpt2", add_prefix_space=True).encode("light") == open_family("gpt2").encode(" light")
    assert open_family("albert", do_lower_case=False).encode("God") != open_family("albert").encode("God")
    assert open_family("t5", extra_ids=3).size == open_family("t5").size - 7
    t5 = open_family("t5")
    assert t5.token_id("<extra_id_0>") == t5.size - 1 and t5.token_id("<extra_id_9>") == t5.size - 10
    romanian = open_family("mbart", src_lang="ro_RO")
    assert romanian("light")["input_ids"][0, -1] == romanian.token_id("ro_RO")
    left = open_family("bert", padding_side="left", truncation_side="left", model_max_length=6)
    assert left(["god", "the god"], padding="max_length")["attention_mask"].tolist()[0] == [0, 0, 0, 1, 1, 1]
    cut = left("light void deep the", truncation=True)["input_ids"]
    assert cut.shape == (1, 6) and cut[0, -2] == left.encode("the")[0]
    assert not open_family("bert", model_input_names=["input_ids", "attention_mask"]).uses_types


def test_config_next_to_a_tokenizer_json_is_followed(tmp_path: pathlib.Path) -> None:
    """Published folders often contain a tokenizer.json made with other options than the settings next to it."""
    files = open_family("bert").files
    assert tokenizer_from_files(files, "x").encode("GOD") == open_family("bert").encode("god")
    settings = json.loads(files["tokenizer_config.json"]) | {"do_lower_case": False}
    changed = tokenizer_from_files(files | {"tokenizer_config.json": json.dumps(settings).encode()}, "x")
    assert changed.encode("GOD") == open_family("bert", do_lower_case=False).encode("GOD")
    assert changed.digest != open_family("bert").digest
    changed.save_files(tmp_path)
    assert load_tokenizer(tmp_path).digest == changed.digest


def test_truncation_and_padding_in_a_tokenizer_json_are_ignored() -> None:
    """Sentence embedders publish such files; truncation is decided by the call."""
    tokenizer = open_family("bert")
    tokenizer.backend.enable_truncation(3)
    tokenizer.backend.enable_padding(length=9)
    files = {"tokenizer.json": tokenizer.backend.to_str().encode(), "config.json": b'{"model_type": "bert"}'}
    again = tokenizer_from_files(files, "x")
    assert again("the god the god")["input_ids"].shape == (1, 6)
    assert again.encode("the god the god") == open_family("bert").encode("the god the god")
    assert again.digest == open_family("bert").digest


def test_added_tokens(tmp_path: pathlib.Path) -> None:
    size = open_family("gpt2").size
    pad = {"content": "<pad>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    decoder = {str(size): pad, str(size + 1): {"content": "<tool>", "special": False}}
    tokenizer = open_family("gpt2", added_tokens_decoder=decoder, pad_token="<pad>")
    assert tokenizer.pad_id == size and tokenizer.size == size + 2
    assert tokenizer.encode("a<tool>b")[1] == size + 1 and tokenizer.token_bytes[size + 1] == 6
    folder = write_folder(
        tmp_path, "gpt2", added_tokens__json={"<pad>": size}, special_tokens_map__json={"pad_token": "<pad>"}
    )
    assert load_tokenizer(folder).pad_id == size
    with pytest.raises(TokenizerError, match=f"'<pad>' the id {size + 5}.*its id is {size}"):
        open_family("gpt2", added_tokens_decoder={str(size + 5): pad})
    extra = open_family("bert", additional_special_tokens=["<e1>"])
    assert extra("the <e1> god", add_special_tokens=False)["input_ids"][0, 1] == extra.size - 1
    assert extra.size - 1 in extra.special_ids


def test_roles_that_are_missing() -> None:
    gpt2, t5 = open_family("gpt2"), open_family("t5")
    assert gpt2.cls_id == gpt2.sep_id == gpt2.bos_id == gpt2.eos_id == gpt2.pad_id
    assert "mask" not in gpt2.roles and "cls" not in t5.roles and t5.sep_id == t5.eos_id
    with pytest.raises(TokenizerError, match="gpt2 has no mask token.*mask_token in tokenizer_config.json"):
        _ = gpt2.mask_id
    with pytest.raises(TokenizerError, match="no bos token"):
        _ = t5.bos_id
    assert open_family("bert", mask_token=None).roles.keys() == open_family("bert").roles.keys() - {"mask"}


def test_a_tokenizer_json_without_settings_is_read_by_the_names_of_its_tokens() -> None:
    bert = tokenizer_from_files({"tokenizer.json": open_family("bert").files["tokenizer.json"]}, "x")
    assert bert.roles == open_family("bert").roles and bert.uses_types
    gpt2 = tokenizer_from_files({"tokenizer.json": open_family("gpt2").files["tokenizer.json"]}, "x")
    assert gpt2.eos_id == gpt2.token_id("<|endoftext|>") and not gpt2.uses_types


def test_kind_is_guessed_from_the_vocabulary() -> None:
    """Folders without config.json and tokenizer_config.json."""
    for name in ("bert", "gpt2", "roberta", "t5", "albert", "xlm-roberta"):
        files = {file: content for file, content in files_of(name).items() if "config" not in file}
        guessed, configured = tokenizer_from_files(files, "x"), open_family(name)
        assert guessed("the earth")["input_ids"].tolist() == configured("the earth")["input_ids"].tolist()


def test_rows_of_several_lengths_need_padding() -> None:
    tokenizer = open_family("bert")
    assert tokenizer(["the god", "the the"])["input_ids"].shape == (2, 4)
    with pytest.raises(TokenizerError, match="3 to 5 tokens.*padding=True"):
        tokenizer(["the", "the the the"])
    padded = tokenizer(["the", "the the the"], padding="longest", padding_side="left", return_offsets=True)
    assert padded["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1] * 5]
    assert padded["offset_mapping"].shape == (2, 5, 2) and padded["offset_mapping"][0, 3].tolist() == [0, 3]
    assert tokenizer([], padding=True)["input_ids"].shape == (0, 0)
    assert tokenizer(["the"], padding="max_length", max_length=7)["input_ids"].shape == (1, 7)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (dict(text="the", padding="max_length"), "give max_length"),
        (dict(text="the", padding="most"), "padding='most'.*longest"),
        (dict(text="the", padding=True, padding_side="top"), "padding_side='top'"),
        (dict(text="the", truncation=True, max_length=2), "max_length=2.*3 or more"),
        (dict(text="the", text_pair="god", truncation=True, max_length=4), "two texts.*5 or more"),
        (dict(text=["the", "god"], text_pair=["the"]), "2 texts and text_pair has 1"),
        (dict(text=["the"], text_pair="god"), "two lists"),
        (dict(), "give text or text_target"),
        (dict(text=["the", None]), "not a list that contains a NoneType"),
    ],
)
def test_invalid_calls(call: dict[str, Any], reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason):
        open_family("bert")(**call)


def test_truncation_in_one_call_does_not_affect_the_next() -> None:
    tokenizer = open_family("bert")
    tokenizer("the the the the", truncation=True, max_length=4)
    assert tokenizer("the the the the")["input_ids"].shape == (1, 6)


def test_folders_that_hold_no_tokenizer(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        TokenizerError, match="without a tokenizer: it has none of tokenizer.json, vocab.txt, .*tokenizer.model"
    ):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match="requires a RobertaTokenizer, which needs vocab.json and merges.txt"):
        load_tokenizer(write_folder(tmp_path / "a", "bert", config__json={"model_type": "roberta"}))
    with pytest.raises(
        TokenizerError, match="require FunnelTokenizer, which is not supported without.*save_pretrained"
    ):
        load_tokenizer(
            write_folder(tmp_path / "b", "bert", tokenizer_config__json={"tokenizer_class": "FunnelTokenizer"})
        )
    with pytest.raises(TokenizerError, match="not one of ar_AR"):
        load_tokenizer(write_folder(tmp_path / "c", "mbart", tokenizer_config__json={"src_lang": "English"}))


@pytest.mark.parametrize(
    ("family", "file", "content", "reason"),
    [
        ("bert", "tokenizer.json", b"{}", "tokenizer.json is not an object with a model"),
        ("bert", "tokenizer.json", b"\xff\x00", "tokenizer.json is not JSON"),
        ("bert", "vocab.txt", b"a\nb\n", "lacks the unknown token"),
        ("bert", "vocab.txt", b"\xff\xfe", "vocab.txt cannot be read"),
        ("bert", "tokenizer_config.json", b"{", "tokenizer_config.json is not JSON"),
        ("bert", "config.json", b"[]", "config.json is .*: expected object"),
        ("gpt2", "merges.txt", b"x y\n", "vocab.json and merges.txt cannot be read"),
        ("gpt2", "merges.txt", b"a b\nabc\n", "merges.txt has the line 'abc', which is not two tokens"),
        ("gpt2", "vocab.json", b"{", "vocab.json is not JSON"),
        ("t5", "spiece.model", b"hello", "spiece.model cannot be read"),
        ("t5", "spiece.model", b"", "has no pieces"),
    ],
)
def test_damaged_files(family: str, file: str, content: bytes, reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason):
        tokenizer_from_files(files_of(family) | {file: content}, "here")


def test_sentencepiece_of_the_wrong_kind() -> None:
    files = {"spiece.model": files_of("llama")["tokenizer.model"], "config.json": b'{"model_type": "t5"}'}
    with pytest.raises(TokenizerError, match="T5Tokenizer needs a sentencepiece model of type unigram.*type BPE"):
        tokenizer_from_files(files, "here")


def test_tokenizer_model_without_a_class_is_ours(tmp_path: pathlib.Path) -> None:
    proto = files_of("llama")["tokenizer.model"]
    for files in ({}, {"config.json": b'{"seed": 0}'}, {"config.json": b'{"model_type": "bert"}'}):
        tokenizer = tokenizer_from_files(files | {"tokenizer.model": proto}, "here")
        assert isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.proto == proto
    (tmp_path / "my.model").write_bytes(proto)
    assert isinstance(load_tokenizer(tmp_path / "my.model"), SentencePieceTokenizer)
    assert isinstance(open_family("llama"), HFTokenizer)

"""Options of `generate`, without a model: defaults, the ends of every range, lengths, and settings of rules and filters."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from lm_research.decoding import generation_config
from lm_research.decoding.generation_config import (
    FILE,
    GenerationConfig,
    check_types,
    load_defaults,
    make_options,
    save_defaults,
)
from lm_research.decoding.generation_settings import LengthLimits, make_filters, make_rules
from lm_research.decoding.logits_processors import NO_TOKEN
from lm_research.errors import PretrainedError, UserError

# Of transformers 5.24, GenerationConfig._get_default_generation_params(); names that it lacks are None, False or 0 here too.
TRANSFORMERS = {
    "num_beams": 1, "num_return_sequences": 1, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0,
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "length_penalty": 1.0, "num_beam_groups": 1,
    "use_cache": True,
}  # fmt: skip


def test_defaults_match_transformers() -> None:
    """Only the number of drafted tokens differs: 5, as before 4.46; transformers has 20 with a threshold of confidence."""
    given = {name: value for name, value in dataclasses.asdict(GenerationConfig()).items() if value}
    assert given == {**TRANSFORMERS, "num_assistant_tokens": 5}


BEAMS = {"num_beams": 4}
DRAWN = {"do_sample": True}
ENDS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    # accepted values, refused values, and a part of the message
    ({"num_beams": 1}, {"num_beams": 0}, "num_beams=0: it must be at least 1"),
    ({"num_return_sequences": 1}, {"num_return_sequences": 0}, "at least 1"),
    ({"num_beam_groups": 1}, {"num_beam_groups": 0}, "at least 1"),
    ({"num_assistant_tokens": 1}, {"num_assistant_tokens": 0}, "at least 1"),
    ({"no_repeat_ngram_size": 0}, {"no_repeat_ngram_size": -1}, "must be 0"),
    ({"encoder_no_repeat_ngram_size": 0}, {"encoder_no_repeat_ngram_size": -1}, "must be 0"),
    ({"top_logprobs": 0}, {"top_logprobs": -1}, "must be 0"),
    ({"max_new_tokens": 1}, {"max_new_tokens": 0}, "max_new_tokens=0: it must be at least 1"),
    ({"max_length": 1}, {"max_length": 0}, "at least 1"),
    ({"repetition_penalty": 0.01}, {"repetition_penalty": 0.0}, "above 0"),
    ({"encoder_repetition_penalty": 0.01}, {"encoder_repetition_penalty": 0.0}, "above 0"),
    ({"max_new_tokens": 2**31 - 1}, {"max_new_tokens": 2**31}, "32 bits"),
    ({"sequence_bias": [[[4], -1.0]], "pad_token_id": -(2**31)}, {"pad_token_id": -(2**31) - 1}, "32 bits"),
    ({"seed": 2**40}, {"seed": 1.5}, "an integer"),
    ({**DRAWN, "top_k": 0}, {**DRAWN, "top_k": -1}, "must be 0"),
    ({**DRAWN, "temperature": 0.01}, {**DRAWN, "temperature": 0.0}, "above 0"),
    ({"temperature": 0.0}, {**DRAWN, "temperature": -1.0}, "above 0"),  # only matters when sampling
    ({**DRAWN, "top_p": 1.0}, {**DRAWN, "top_p": 1.01}, "from 0 to 1"),
    ({**DRAWN, "top_p": 0.01}, {**DRAWN, "top_p": 0.0}, "must be above 0"),
    ({**DRAWN, "typical_p": 0.01}, {**DRAWN, "typical_p": 0.0}, "must be above 0"),
    ({**DRAWN, "min_p": 0.0}, {**DRAWN, "min_p": -0.01}, "from 0 to 1"),
    ({**DRAWN, "min_p": 1.0}, {**DRAWN, "min_p": 1.01}, "from 0 to 1"),
    ({**DRAWN, "epsilon_cutoff": 1.0}, {**DRAWN, "epsilon_cutoff": 1.01}, "from 0 to 1"),
    ({**BEAMS, "early_stopping": True}, {**BEAMS, "early_stopping": "always"}, "early_stopping"),
    ({**BEAMS, "num_return_sequences": 4}, {**BEAMS, "num_return_sequences": 5}, "raise num_beams to 5"),
    ({**DRAWN, "num_return_sequences": 9}, {"num_return_sequences": 2}, "num_beams=2"),
    ({"stop_strings": ["a"]}, {**BEAMS, "stop_strings": ["a"]}, "cannot be combined with beams"),
    ({"stop_strings": "a"}, {"stop_strings": "\ud800"}, "half a character"),
    ({**BEAMS, "force_words_ids": [[1]]}, {"force_words_ids": [[1]]}, "needs beams"),
    ({**BEAMS, "force_words_ids": [[1]]}, {**BEAMS, **DRAWN, "force_words_ids": [[1]]}, "plain beam search"),
    ({**BEAMS, "force_words_ids": [[1]]}, {**BEAMS, "num_beam_groups": 2, "force_words_ids": [[1]]}, "plain beam search"),
    ({**BEAMS, "force_words_ids": [[1]]}, {**BEAMS, "force_words_ids": []}, "a list of lists"),
    ({"bad_words_ids": [[1]]}, {"bad_words_ids": [[1], []]}, "a list of lists"),
    ({**BEAMS, "num_beam_groups": 4}, {**BEAMS, "num_beam_groups": 3}, "not a multiple"),
    ({**BEAMS, "num_beam_groups": 2}, {**BEAMS, **DRAWN, "num_beam_groups": 2}, "cannot be combined with do_sample"),
    ({**BEAMS, "num_beam_groups": 2, "diversity_penalty": 0.5}, {**BEAMS, "diversity_penalty": 0.5}, "add num_beam_groups"),
    ({"top_logprobs": 2}, {**BEAMS, "top_logprobs": 2}, "cannot be combined with beams"),
    ({"penalty_alpha": 0.5, "top_k": 2}, {"penalty_alpha": 0.5, "top_k": 1}, "top_k above 1"),
    ({"penalty_alpha": 0.5}, {"penalty_alpha": 0.5, **DRAWN}, "neither samples"),
    ({"penalty_alpha": 0.0, **BEAMS}, {"penalty_alpha": 0.5, **BEAMS}, "neither samples"),
    ({"forced_eos_token_id": [5, 6], "suppress_tokens": [5]}, {"forced_eos_token_id": 5, "suppress_tokens": [5]}, "also in suppress_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("taken", "refused", "message"), ENDS, ids=ascii)
def test_ends_of_ranges(taken: dict[str, Any], refused: dict[str, Any], message: str) -> None:
    made = make_options(taken, {}, {})
    assert all(getattr(made, name) == value for name, value in taken.items())
    with pytest.raises(UserError, match=message):
        make_options(refused, {}, {})


@pytest.mark.parametrize(
    ("given", "strategy"),
    [
        ({}, "tokens"), (DRAWN, "tokens"), (BEAMS, "beams"), ({**BEAMS, **DRAWN}, "beams"), ({"num_beams": 2}, "beams"),
        ({"penalty_alpha": 0.1, "top_k": 2}, "contrastive"), ({"penalty_alpha": 0.1, "top_k": 1}, "tokens"), ({"penalty_alpha": 0.0}, "tokens"),
    ],
)  # fmt: skip
def test_strategies(given: dict[str, Any], strategy: str) -> None:
    assert GenerationConfig(**given).strategy == strategy


def test_precedence() -> None:
    """Arguments, then generation_config.json, then config.json, which next to such a file gives only tokens."""
    file, config = (
        {"top_k": 3, "max_new_tokens": 7},
        {"top_k": 4, "eos_token_id": 9, "forced_eos_token_id": 8, "length_penalty": 2.0, "decoder": {"num_beams": 3}},
    )
    both = make_options({"max_new_tokens": 5, "top_p": None}, file, config)
    assert (both.max_new_tokens, both.top_k, both.eos_token_id, both.length_penalty, both.num_beams) == (
        5,
        3,
        9,
        1.0,
        1,
    )
    assert both.forced_eos_token_id is None
    alone = make_options({}, {}, config)
    assert (alone.top_k, alone.length_penalty, alone.num_beams, alone.forced_eos_token_id) == (4, 2.0, 3, 8)
    # A length of the other kind takes the place of the files'.
    assert make_options({"max_length": 8}, file, {}).max_new_tokens is None
    assert make_options({"max_length": 8, "max_new_tokens": 2}, file, {}).max_new_tokens == 2
    assert make_options({"min_length": 8}, {"min_new_tokens": 3}, {}).min_new_tokens is None
    assert make_options({}, {"min_new_tokens": 3}, {}).min_new_tokens == 3


@pytest.mark.parametrize(("ends", "pad", "filled"), [([7, 8], None, 7), (None, None, 0), (7, 3, 3), (7, 0, 0)])
def test_the_padding_token(ends: Any, pad: int | None, filled: int) -> None:
    assert GenerationConfig(eos_token_id=ends, pad_token_id=pad).pad == filled


@pytest.mark.parametrize(
    ("given", "width", "longest", "limit", "most", "least"),
    [
        ({}, 5, 4, 0, 20, 0),  # 20 new ones where no length is given
        ({}, 5, 4, 10, 7, 0),  # the last token is not read: 4 + 7 - 1 = 10 positions
        ({"max_length": 9}, 5, 4, 0, 4, 0),
        ({"max_length": 6}, 5, 4, 0, 1, 0),
        ({"max_length": 9, "max_new_tokens": 2}, 5, 4, 0, 2, 0),
        ({"max_new_tokens": 7}, 5, 4, 10, 7, 0),
        ({"min_length": 8}, 5, 4, 0, 20, 3),
        ({"min_length": 3}, 5, 4, 0, 20, 0),
        ({"min_length": 8, "min_new_tokens": 2}, 5, 4, 0, 20, 2),
    ],
)
def test_lengths(given: dict[str, int], width: int, longest: int, limit: int, most: int, least: int) -> None:
    found = LengthLimits(GenerationConfig(**given), width, longest, limit)
    assert (found.max_new_tokens, found.min_new_tokens) == (most, least)


@pytest.mark.parametrize(
    ("given", "limit", "message"),
    [
        ({"max_length": 5}, 0, "max_length=5 counts the prompt, which has 5 tokens already"),
        ({"max_new_tokens": 8}, 10, "has 4 tokens and max_new_tokens is 8, but the model has positions for 10"),
        ({}, 3, "has 4 tokens and max_new_tokens is 1, but the model has positions for 3"),
    ],
)
def test_lengths_that_do_not_fit(given: dict[str, int], limit: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LengthLimits(GenerationConfig(**given), 5, 4, limit)


def rules(width: int = 5, **given: Any) -> dict[str, Any]:
    options = GenerationConfig(**given)
    return make_rules(options, LengthLimits(options, width, width, 0), width, 0)


def plain(value: Any) -> Any:
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else np.asarray(value).tolist()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"repetition_penalty": 1.5, "encoder_repetition_penalty": 2.0}, {"repetition_penalty": 1.5, "encoder_repetition_penalty": 2.0}),
        ({"presence_penalty": -0.5, "frequency_penalty": 0.25}, {"presence_penalty": -0.5, "frequency_penalty": 0.25}),
        ({"no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 2}, {"no_repeat_ngram": 3, "encoder_no_repeat_ngram": 2}),
        # A minimum length matters only where there is an end token to forbid.
        ({"min_new_tokens": 3, "eos_token_id": [7, 8]}, {"min_new_tokens": {"count": 3, "ends_E": [7, 8]}}),
        ({"min_new_tokens": 3}, {}),
        ({"min_new_tokens": 0, "eos_token_id": 7}, {}),
        # The first token of a text is forced only where no prompt is before it; the last one at the maximum length.
        ({"forced_bos_token_id": 0}, {}),
        ({"forced_bos_token_id": 0, "width": 1}, {"forced_bos": {"tokens_T": [0], "at": 0}}),
        ({"forced_eos_token_id": 0, "max_new_tokens": 6}, {"forced_eos": {"tokens_T": [0], "at": 5}}),
        ({"exponential_decay_length_penalty": (4, 1.5), "eos_token_id": 7}, {"length_decay": {"start": 4, "factor": 1.5, "ends_E": [7]}}),
        ({"exponential_decay_length_penalty": (4, 1.5)}, {}),
        ({"suppress_tokens": [5, 6]}, {"suppress_tokens": [5, 6]}),
        # At the first token; after a forced one at the second.
        ({"begin_suppress_tokens": [5]}, {"begin_suppress_tokens": {"tokens_T": [5], "at": 0}}),
        ({"begin_suppress_tokens": [5], "width": 1}, {"begin_suppress_tokens": {"tokens_T": [5], "at": 0}}),
        ({"begin_suppress_tokens": [5], "width": 1, "forced_bos_token_id": 3},
         {"begin_suppress_tokens": {"tokens_T": [5], "at": 1}, "forced_bos": {"tokens_T": [3], "at": 0}}),
        ({"renormalize_logits": True}, {}),
        ({"renormalize_logits": True, "num_beams": 2}, {"renormalize": {}}),
    ],
)  # fmt: skip
def test_rules(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert plain(rules(**given)) == expected


def test_words_of_rules() -> None:
    """Right-aligned in a table; a word that is just an end token is not forbidden, or a text could never end."""
    bad = rules(bad_words_ids=[[7], [3, 4]], eos_token_id=7)["bad_words"]
    assert bad[0].tolist()[-2:] == [3, 4] and (bad[0][:-2] == NO_TOKEN).all() and (bad[1:] == NO_TOKEN).all()
    assert "bad_words" not in rules(bad_words_ids=[[7]], eos_token_id=[7, 8])
    bias = rules(sequence_bias={(5,): 2.0, (6, 7): -1.0})["sequence_bias"]
    assert bias["bias_W"].tolist()[:3] == [2.0, -1.0, 0.0] and len(bias["bias_W"]) == len(bias["words_WT"])
    assert bias["words_WT"][:2, -2:].tolist() == [[NO_TOKEN, 5], [6, 7]]
    assert plain(make_rules(GenerationConfig(), LengthLimits(GenerationConfig(), 1, 1, 0), 1, 40)) == {"vocabulary": 40}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0.5}, {}),  # nothing is sampled
        (DRAWN, {"top_k": 50}),
        ({**DRAWN, "top_k": 0}, {}),
        ({**DRAWN, "top_k": 3, "temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "typical_p": 0.75, "epsilon_cutoff": 0.0625},
         {"temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125, "typical_p": 0.75, "epsilon_cutoff": 0.0625}),
    ],
)  # fmt: skip
def test_filters(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert plain(make_filters(GenerationConfig(**given))) == expected


@pytest.mark.parametrize(
    ("given", "file", "config", "message"),
    [
        ({}, {"num_beams": 0}, {}, r"The model's generation_config.json: num_beams=0: .* give num_beams yourself"),
        ({}, {}, {"num_beams": 0}, r"The model's config.json: num_beams=0: "),
        ({}, {"top_k": 3}, {"eos_token_id": 2**31}, r"The model's config.json: eos_token_id=2147483648: "),
        ({"num_beams": 0}, {"num_beams": 2}, {}, r"^num_beams=0: "),
        ({"num_beams": 0}, {}, {}, r"^num_beams=0: "),
        ({}, {"top_k": "x"}, {}, r"The model's files set top_k='?\"?x"),
        (
            {},
            {"guidance_scale": 1.5},
            {},
            r"The model's generation_config.json sets guidance_scale=1.5, which is not supp",
        ),
        ({}, {"token_healing": True}, {}, r"sets token_healing=True, which is not supported"),
        ({"do_sample": True}, {"eta_cutoff": 0.1}, {}, r"sets eta_cutoff=0.1, which is not supported"),
    ],
)
def test_errors_name_their_source(
    given: dict[str, Any], file: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_options(given, file, config)
    if "x" in file.values():
        assert make_options({"top_k": 3}, file, config).top_k == 3  # what is not used may be anything


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ({"temperature": 0.5}, True),
        ({"temperature": 0.5, "do_sample": True}, False),
        ({}, False),
        ({"top_k": 3}, False),
    ],
)
def test_filters_without_sampling_are_reported(
    given: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    make_options(given, {"top_p": 0.5}, {})
    assert [record.getMessage() for record in caplog.records] == [
        "temperature only affect sampling: add do_sample=True."
    ] * warned


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("do_sample", 1, 2),
        ("do_sample", 0, -1),
        ("exponential_decay_length_penalty", [10, 1.5], [10]),
        ("exponential_decay_length_penalty", (10, 2), [1.5, 10]),
        ("bad_words_ids", [[1], range(3)], [1]),
        ("suppress_tokens", np.array([1, 2]), np.array(1)),
        ("sequence_bias", {(1,): 2}, {1: 2.0}),
        ("sequence_bias", [[[1], 2.0]], [[1, 2.0]]),
        ("seed", [1, 2], [1.0]),
        ("top_k", np.int64(3), True),
        ("temperature", np.float32(0.5), float("nan")),
        ("early_stopping", "never", 0.5),
    ],
)
def test_types(name: str, taken: Any, refused: Any) -> None:
    check_types({name: taken})
    with pytest.raises(UserError, match=f"^{name}=.*wrong type"):
        check_types({name: refused})


def test_options_without_effect_are_ignored() -> None:
    file = {
        "guidance_scale": 1.0,
        "token_healing": False,
        "watermarking_config": None,
        "eta_cutoff": 0.1,
        "use_cache": True,
    }
    assert make_options({}, file, {}) == GenerationConfig()
    assert make_options({"do_sample": True}, {"eta_cutoff": 0.0}, {}).do_sample


def test_a_file_of_defaults(tmp_path: pathlib.Path) -> None:
    assert load_defaults(tmp_path) == {}
    save_defaults(tmp_path, {})
    assert not (tmp_path / FILE).exists()
    save_defaults(tmp_path, {"top_k": 3, "num_beams": None, "unknown": "x"})
    assert load_defaults(tmp_path) == {"top_k": 3, "num_beams": None, "unknown": "x"}
    for text, message in (
        ("[1]", "Copy it again, or remove it"),
        ('{"num_beams": "x"}', f"{FILE}: num_beams=.*wrong type"),
    ):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(PretrainedError, match=message):
            load_defaults(tmp_path)


@pytest.mark.parametrize(
    ("value", "whole", "real", "switch"),
    [
        (3, True, True, False),
        (1, True, True, True),
        (True, False, False, True),
        (2.5, False, True, False),
        (float("nan"), False, False, False),
        (np.int64(3), True, True, False),
        (np.float32(2.5), False, True, False),
        (np.array(0), True, True, True),
        (np.array([3]), False, False, False),
        (np.bool_(True), False, False, True),
        ("3", False, False, False),
        (None, False, False, False),
    ],
    ids=repr,
)
def test_kinds_of_numbers(value: object, whole: bool, real: bool, switch: bool) -> None:
    """Scalars of Python and NumPy; True is no number, but 0 and 1 are switches."""
    assert [generation_config.fits(value, kind) for kind in (int, float, bool)] == [whole, real, switch]

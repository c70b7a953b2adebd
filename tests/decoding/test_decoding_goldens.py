"""Token ids equal those of transformers' generate: greedy, rules, beams 1 to 8, penalties of length, rows of all lengths."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import golden_texts
import numpy as np
import pytest

from lm_research.decoding.generate import generate
from lm_research.errors import UserError
from lm_research.pretrained import LanguageModel, from_pretrained

QUICK = {"gpt2": (1, 4), "llama": (1,), "mistral": (1,), "t5": (1, 4), "bart": (1,)}  # beams
# Decoders of encoder families, and encoder-decoders made of two models: few cases; the plain ones run by default for some.
FEW = {"bert_decoder": (1, 3), "roberta_decoder": (1,), "bart_decoder": (1,), "pair_bert_gpt2": (1, 3)}


def cases() -> list[Any]:
    """Every case; most of those that compile separate programs run with -m slow."""
    found = []
    for name in golden_texts.NAMES:
        seen: set[str] = set()
        for case in golden_texts.load(name)["cases"]:
            given = case["arguments"]
            beams = given.get("num_beams", 1)
            other = set(given) - {
                "num_beams",
                "length_penalty",
                "early_stopping",
                "num_return_sequences",
                "max_new_tokens",
            }
            kind = f"{beams} {sorted(other)}"
            quick = beams in (QUICK | FEW).get(name, ()) and (
                kind in seen or beams > 1 or name == "gpt2" or len(seen) < 3
            )
            quick = quick and (name in QUICK or not other)
            quick = quick and (name not in QUICK or beams in (1, 4) or not {"eos_token_id"} & other or name == "gpt2")
            seen |= {kind} if quick else set()
            given = json.dumps({key: value for key, value in given.items() if key != "max_new_tokens"})
            marks = () if quick else pytest.mark.slow
            found.append(pytest.param(name, case, id=f"{name} {given}", marks=marks))
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def model(name: str) -> LanguageModel:
        return golden_texts.make_model(name, tmp_path_factory.mktemp(name))

    return model


@pytest.mark.parametrize(("name", "case"), cases())
def test_tokens_match_transformers(name: str, case: dict, models: Any) -> None:
    inputs = golden_texts.load(name)["inputs"]
    output = generate(models(name), **inputs, **case["arguments"], return_dict_in_generate=True)
    assert output.sequences.tolist() == case["sequences"]
    if "scores" in case:
        np.testing.assert_allclose(output.sequences_scores, case["scores"], rtol=1e-4, atol=1e-4)


def test_goldens_are_not_trivial() -> None:
    """Texts end early in some cases, and beams find other texts than greedy decoding."""
    for name in QUICK:
        content = golden_texts.load(name)
        assert len(content["cases"]) > 35
        greedy = content["cases"][0]["sequences"]
        ended = [case for case in content["cases"] if 3 in (row[-1] for row in case["sequences"])]
        wide = [case for case in content["cases"] if case["arguments"].get("num_beams", 1) > 1]
        assert len(ended) > 3 and any(case["sequences"][:3] != greedy for case in wide)


def left_padded() -> list[Any]:
    """Every case; those of all families but one run with -m slow."""
    content = json.loads((golden_texts.FOLDER.parent / "left_goldens" / "sources.json").read_text())
    masked = {True: "masked", False: "no mask"}
    return [
        pytest.param(
            case,
            id=f"{case['model']} {masked[case['inputs']['attention_mask'] is not None]} {len(case['arguments'])}",
            marks=() if case["model"] == "bart" else pytest.mark.slow,
        )
        for case in content["cases"]
    ]


def ruled() -> list[Any]:
    """Cases whose rules count padding; the default run has a few of each part: prompts, sources, and beginnings of outputs."""
    content = json.loads((golden_texts.FOLDER.parent / "left_goldens" / "rules.json").read_text())
    found = []
    for case in content["cases"]:
        given, inputs = case["arguments"], case["inputs"]
        (rule, *beams) = sorted(set(given) - {"max_new_tokens", "pad_token_id"}, key=len, reverse=True)
        part = "mask" if "attention_mask" in inputs else "none"
        part = "decoder" if "decoder_input_ids" in inputs else part
        quick = (case["model"], part, rule) in {
            ("gpt2", "mask", "no_repeat_ngram_size"),
            ("gpt2", "none", "sequence_bias"),
            ("bart", "decoder", "no_repeat_ngram_size"),
            ("pair_roberta_roberta", "decoder", "no_repeat_ngram_size"),
            ("t5", "mask", "encoder_no_repeat_ngram_size"),
        }
        marks = () if quick and not beams else pytest.mark.slow
        found.append(pytest.param(case, id=f"{case['model']} {part} {rule}={given[rule]} {beams}", marks=marks))
    return found


@pytest.mark.parametrize("case", ruled())
def test_rules_count_padding_as_in_transformers(case: dict, models: Any) -> None:
    assert generate(models(case["model"]), **case["inputs"], **case["arguments"]).tolist() == case["sequences"]


@pytest.mark.parametrize("case", left_padded())
def test_padding_before_sources_shifts_positions_as_in_transformers(case: dict, models: Any) -> None:
    assert generate(models(case["model"]), **case["inputs"], **case["arguments"]).tolist() == case["sequences"]


def test_a_source_without_a_token_of_the_vocabulary_is_refused(models: Any) -> None:
    for mask in (None, [[0, 1, 1]]):
        with pytest.raises(UserError, match="holds the token -1"):
            generate(models("bart"), input_ids=[[1, -1, 5]], attention_mask=mask, max_new_tokens=1)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_any_end_token_in_config_json_ends_texts(name: str, tmp_path: pathlib.Path) -> None:
    """As those of an argument do, of which transformers made the golden."""
    cases = [
        case for case in golden_texts.load(name)["cases"] if isinstance(case["arguments"].get("eos_token_id"), list)
    ]
    case = cases[0]
    arguments = dict(case["arguments"])
    golden_texts.make_model(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": arguments.pop("eos_token_id")}))
    lm = from_pretrained(tmp_path)
    assert generate(lm, **golden_texts.load(name)["inputs"], **arguments).tolist() == case["sequences"]
    with pytest.raises(UserError, match="eos_token_id is .*reads the state of the one token that ends"):
        from_pretrained(tmp_path, head="classification")


def test_each_prompt_may_have_its_first_token(models: Any) -> None:
    """As if `decoder_input_ids` had them (transformers 5.24, _prepare_decoder_input_ids_for_generation)."""
    inputs = golden_texts.load("bart")["inputs"]
    expected = generate(models("bart"), **inputs, decoder_input_ids=[[2], [7], [9]], max_new_tokens=3)
    found = generate(models("bart"), **inputs, decoder_start_token_id=[2, 7, 9], max_new_tokens=3)
    assert found.tolist() == expected.tolist()
    with pytest.raises(UserError, match="decoder_start_token_id has 2 tokens for 3 prompts"):
        generate(models("bart"), **inputs, decoder_start_token_id=[2, 7], max_new_tokens=3)

"""The harness's requests against scores computed by hand from the model's logits, and a run of the harness's own command."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import lm_research
from helpers import tiny
from helpers.golden_models import golden_tensor
from helpers.golden_pipelines import write_model
from lm_research.config import resolve
from lm_research.errors import UserError
from lm_research.models.definition import define
from lm_research.pretrained import LanguageModel
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.tokenizer_training import train_tokenizer

pytest.importorskip("lm_eval")
interface = pytest.importorskip("lm_research.interop.lm_eval")

TEXTS = ["the river flows to the sea", "a stone lies in the river", "bread and water at night"]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A model of 24 positions with a vocabulary of bytes and a few merges."""
    section = resolve({"tokenizer": {"type": "byte_bpe", "vocab_size": 280}}).tokenizer
    tokenizer = train_tokenizer(iter(TEXTS * 20), section)
    folder = tmp_path_factory.mktemp("harness")
    tokenizer.save_files(folder)
    plain = tiny.model("gpt2")
    definition = define(plain.arch.replace(vocab_size=280, max_length=24), plain.head)
    lm = LanguageModel(definition, tiny.random_params(definition, 0, 0.3), "gpt2", {}, load_tokenizer(folder))
    lm.save_native(folder)
    return folder


def requests(*args: tuple) -> list[Any]:
    return [SimpleNamespace(args=one) for one in args]


def logs(lm: LanguageModel, ids: list[int]) -> np.ndarray:
    """Return log-probabilities of all tokens at each place, from one forward pass."""
    logits_LV = np.asarray(lm(input_ids=[ids])["logits"], np.float64)[0]
    return logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))


def by_hand(lm: LanguageModel, ids: list[int], asked: int) -> float:
    """Return those of the last `asked` of the ids, given those before."""
    found = logs(lm, ids[:-1])
    return sum(found[place - 1, ids[place]] for place in range(len(ids) - asked, len(ids)))


def test_loglikelihood(causal: pathlib.Path) -> None:
    model, lm = interface.ResearchLM(str(causal), batch_size=2), lm_research.from_pretrained(causal)
    pairs = [("the river", " flows"), ("", "a stone"), ("bread and", " water at night"), ("x " * 40, " river")]
    found = model.loglikelihood(requests(*pairs), disable_tqdm=True)
    start = model.prefix_token_id
    for (context, more), (value, greedy) in zip(pairs, found, strict=True):
        ids = lm.tokenizer.encode_batch([context + more])[0]
        asked = len(ids) - len(lm.tokenizer.encode_batch([context.rstrip()])[0])  # spaces belong to the continuation
        ids = [start, *ids][-25:]  # 24 are read, so 25 with the last one that is scored
        assert value == pytest.approx(by_hand(lm, ids, asked), abs=1e-4)
        best = logs(lm, ids[:-1]).argmax(-1)[-asked:]
        assert greedy == (best.tolist() == ids[-asked:])


def test_rolling(causal: pathlib.Path) -> None:
    """A text of more than two windows: each token once, after as much as the harness's windows read.

    The token that the tokenizer puts before a text is scored too, as the harness does with models of transformers.
    """
    from lm_eval import utils

    model, lm = interface.ResearchLM(str(causal), batch_size=3), lm_research.from_pretrained(causal)
    text = " ".join(TEXTS * 3)
    start = model.prefix_token_id
    ids = [start, *lm.tokenizer.encode_batch([text])[0]]
    assert len(ids) > 2 * 24
    cut = utils.get_rolling_token_windows(ids, model.prefix_token_id, 24, 1)
    parts = [utils.make_disjoint_window(pair) for pair in cut]
    expected = sum(by_hand(lm, [*before, *asked], len(asked)) for before, asked in parts)
    short, long = model.loglikelihood_rolling(requests(("the",), (text,)), disable_tqdm=True)
    assert long == pytest.approx(expected, abs=1e-3)
    word = lm.tokenizer.encode("the")
    assert short == pytest.approx(by_hand(lm, [start, start, *word], 1 + len(word)), abs=1e-4)


def test_generate_until(causal: pathlib.Path) -> None:
    model, lm = interface.ResearchLM(str(causal), batch_size=2), lm_research.from_pretrained(causal)
    given = [("the river", {"until": [], "max_gen_toks": 4}), ("a stone", {"until": [], "max_gen_toks": 4})]
    whole = model.generate_until(requests(*given), disable_tqdm=True)
    for (context, _), text in zip(given, whole, strict=True):
        ids = [model.prefix_token_id, *lm.tokenizer.encode_batch([context])[0]]
        for _ in range(4):
            ids.append(int(logs(lm, ids)[-1].argmax()))
        assert text == lm.tokenizer.decode(ids[-4:])
    stop = whole[0][1:3]
    stopped = model.generate_until(requests(("the river", {"until": [stop], "max_gen_toks": 4, "temperature": 0.0})))
    assert stopped == [whole[0][: whole[0].index(stop)]]


STORED = json.loads((pathlib.Path(__file__).parent / "lm_eval_goldens" / "harness.json").read_text())


@pytest.mark.parametrize("name", STORED["models"])
def test_answers_match_the_harness_own_model(name: str, tmp_path: pathlib.Path) -> None:
    """Its model "hf", on the same files: how much is read at a time and what is cut, for any number of positions."""
    stored = STORED["models"][name]
    tensors = {key: 4 * golden_tensor(key, tuple(shape)) for key, shape in stored["weights"].items()}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(stored["config"]))
    (tmp_path / "tokenizer.json").write_text(json.dumps(STORED["tokenizers"][str(stored["bos"])]))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    model = interface.ResearchLM(str(tmp_path), batch_size=2)
    assert model.max_length == stored["max_length"]
    for kind in ("loglikelihood", "loglikelihood_rolling"):
        found = getattr(model, kind)(requests(*map(tuple, STORED["requests"][kind])), disable_tqdm=True)
        for one, expected in zip(found, stored[kind], strict=True):
            assert one == pytest.approx(tuple(expected) if isinstance(expected, list) else expected, rel=1e-4), kind
    if "generate_until" in stored:
        given = requests(*map(tuple, STORED["requests"]["generate_until"]))
        assert model.generate_until(given, disable_tqdm=True) == stored["generate_until"]
    assert interface.ResearchLM(str(tmp_path), max_length=9).max_length == 9
    longest = interface.ResearchLM(str(tmp_path), max_length=4096).max_length
    assert longest == (24 if name == "learned" else 4096)  # no more than the positions allow


def test_masked_lms_give_pseudo_likelihoods(tmp_path: pathlib.Path) -> None:
    write_model("masked", tmp_path)
    model, lm = interface.ResearchLM(str(tmp_path)), lm_research.from_pretrained(tmp_path)
    ids = np.ravel(lm.tokenizer("the king visited spain")["input_ids"]).tolist()
    values = []
    for place in range(1, len(ids) - 1):
        hidden = [*ids[:place], lm.tokenizer.roles["mask"], *ids[place + 1 :]]
        values.append(logs(lm, hidden)[place, ids[place]])
    found = model.loglikelihood(requests(("", "the king visited spain"), ("the king", " visited spain")))
    assert [value for value, _ in found] == pytest.approx([sum(values), sum(values[2:])], abs=1e-4)
    with pytest.raises(UserError, match="cannot generate text"):
        model.generate_until(requests(("the", {"until": ["."]})))
    write_model("classes", tmp_path / "classes")
    with pytest.raises(UserError, match="does not define a likelihood"):
        interface.ResearchLM(str(tmp_path / "classes"))


@pytest.mark.slow
def test_the_harness_itself(causal: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A task of two choices from a local file: the harness's accuracy is that of likelihoods computed here."""
    lm = lm_research.from_pretrained(causal)
    items = [{"q": "the river", "choices": [" flows", " water"], "gold": n} for n in (0, 1)]
    items += [{"q": "a stone", "choices": [" lies in the river", " at night"], "gold": n} for n in (1, 1)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "rivers.yaml").write_text(
        f"task: rivers\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/data.jsonl\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
        'target_delimiter: ""\nmetric_list:\n  - metric: acc\n'
    )
    command = ["-m", "lm_research.interop.lm_eval", "--model", "lm_research", "--model_args", f"path={causal}"]
    command += ["--tasks", "rivers", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    right = []
    for item in items:
        values = []
        for choice in item["choices"]:
            ids = [lm.tokenizer.sep_id, *lm.tokenizer.encode_batch([item["q"] + choice])[0]]
            values.append(by_hand(lm, ids, len(ids) - 1 - len(lm.tokenizer.encode_batch([item["q"]])[0])))
        right.append(int(np.argmax(values)) == item["gold"])
    (path,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(path.read_text())["results"]["rivers"]["acc,none"] == pytest.approx(np.mean(right))

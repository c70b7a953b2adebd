"""Tables that config.json ties and that differ in the files: each is used, as transformers 5.24 does (goldens/apart_*.npz), and kept.

What a family's output table is tied to, and which bias is used are in `_tied_weights_keys` of transformers' classes.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import types
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from test_goldens import run

import lm_research
from helpers import golden_models
from helpers.golden_models import load_golden
from lm_research import convert
from lm_research.interop import tied_tables
from lm_research.interop.tensor_files import open_tensors
from lm_research.models.families import FAMILIES
from lm_research.run.init_checkpoint import InitCheckpoint
from lm_research.trees import flatten

APART = list(golden_models.golden_paths("apart"))
SHARED, ENCODER, DECODER = (f"{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"))
HEAD = "lm_head.weight"
# Golden -> the flag of the written config.json (T5's only says whether outputs are scaled), and the tensors that transformers' forward
# pass reads: their names in our files and in the given ones.
WRITTEN: dict[str, tuple[bool, dict[str, str]]] = {
    "bert": (False, {name: name for name in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")}),
    "roberta_bias": (True, {"lm_head.bias": "lm_head.decoder.bias"}),
    "albert": (
        False,
        {name: name for name in ("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight")},
    ),
    "distilbert": (
        False,
        {name: name for name in ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight")},
    ),
    "electra": (False, {"generator_lm_head.weight": "generator_lm_head.weight"}),
    "gpt2": (False, {name: name for name in (HEAD, "transformer.wte.weight")}),
    "llama": (False, {name: name for name in (HEAD, "model.embed_tokens.weight")}),
    "t5": (True, {ENCODER: ENCODER, DECODER: SHARED, HEAD: HEAD}),
    "t5_decoder_alone": (True, {SHARED: DECODER}),
    "mt5_sides": (True, {ENCODER: ENCODER, DECODER: DECODER, HEAD: ENCODER}),
    "bart_output": (False, {"model." + ENCODER: "model." + SHARED, "model." + DECODER: "model." + SHARED, HEAD: HEAD}),
    "bart_decoder": (
        False,
        {"model." + ENCODER: "model." + SHARED, "model." + DECODER: "model." + DECODER, HEAD: "model." + SHARED},
    ),
    "mbart_sides": (
        False,
        {"model." + ENCODER: "model." + ENCODER, "model." + DECODER: "model." + DECODER, HEAD: "model." + DECODER},
    ),
    "marian": (True, {"model." + ENCODER: "model." + ENCODER, "model." + DECODER: "model." + SHARED}),
}


def logits(lm: Any, golden: golden_models.Golden) -> np.ndarray:
    return np.asarray(run(lm, golden.inputs, False)["logits"])


def real(golden: golden_models.Golden) -> np.ndarray:
    """1 where an output counts: in causal models a row of padding sees nothing."""
    mask = golden.inputs["attention_mask"]
    return mask[..., None] if mask.shape == golden.outputs["logits"].shape[:2] else np.ones(1)


@pytest.mark.parametrize("path", APART, ids=lambda path: path.stem)
def test_different_tables_are_used_kept_and_reported(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    golden = load_golden(path)
    golden_models.write_checkpoint(tmp_path / "theirs", golden)
    lm = lm_research.from_pretrained(tmp_path / "theirs")
    wrong = np.abs(logits(lm, golden) - golden.outputs["logits"]) * real(golden)
    assert wrong.max() < 1e-4
    told = " ".join(lm.report.lines())
    assert ("different values" in told or "other values" in told) == (path.stem != "apart_t5_decoder_alone")

    lm.save_pretrained(tmp_path / "ours")
    theirs, ours = open_tensors(tmp_path / "theirs"), open_tensors(tmp_path / "ours")
    flag, written = WRITTEN[path.stem.removeprefix("apart_")]
    for name, of in written.items():
        np.testing.assert_array_equal(ours.read(name), theirs.read(of), err_msg=name)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["tie_word_embeddings"] is flag and lm.config.tie_word_embeddings is flag


@pytest.fixture
def gpt2(tmp_path: pathlib.Path) -> tuple[pathlib.Path, golden_models.Golden]:
    golden = load_golden(golden_models.FOLDER / "apart_gpt2.npz")
    golden_models.write_checkpoint(tmp_path / "gpt2", golden)
    return tmp_path / "gpt2", golden


def test_equal_copies_are_dropped_silently(gpt2: Any) -> None:
    directory, _ = gpt2
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    lm = lm_research.from_pretrained(directory)
    assert lm.report.lines() == [] and lm.config.tie_word_embeddings and "next_token" not in lm.params


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_stored_member_of_a_tie_is_found_with_and_without_the_prefix(gpt2: Any, prefix: str) -> None:
    """Transformers saves GPT2Model without `transformer.` and GPT2LMHeadModel with it; neither has the tied lm_head.weight."""
    arch, family = lm_research.from_pretrained(gpt2[0]).definition.arch.replace(tied=True), FAMILIES["gpt2"]
    name = f"{prefix}wte.weight"
    source = types.SimpleNamespace(names=[name])
    expected = {name: name, "lm_head.weight": name}
    assert tied_tables.members(source, family, arch, "causal_lm", "decoder") == expected
    assert tied_tables.members(types.SimpleNamespace(names=[]), family, arch, "causal_lm", "decoder") == {}
    assert tied_tables.members(source, family, arch.replace(tied=False), "causal_lm", "decoder") == {}


def test_tables_are_equal_if_all_their_rows_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tied_tables, "ROWS", 2)
    arrays = {
        "a": np.arange(10).reshape(5, 2),
        "wide": np.arange(10).reshape(2, 5),
        "copy": np.arange(10).reshape(5, 2),
    }
    arrays |= {str(row): arrays["a"] + (np.arange(5) == row)[:, None] for row in range(5)} | {
        "turned": arrays["a"][:, ::-1]
    }
    source = types.SimpleNamespace(read=arrays.get, shape=lambda name: arrays[name].shape)
    assert [name for name in arrays if tied_tables.equal(source, "a", name)] == ["a", "copy"]


def test_a_table_that_no_head_reads_is_reported(gpt2: Any) -> None:
    lines = lm_research.from_pretrained(gpt2[0], head="none").report.lines()
    assert len(lines) == 1 and "lm_head.weight" in lines[0]


def test_native_directories_and_convert_keep_both(gpt2: Any, tmp_path: pathlib.Path) -> None:
    directory, golden = gpt2
    for to in ("native", "hf"):
        assert convert.main(["--source", str(directory), "--output", str(tmp_path / to), "--to", to]) == 0
        wrong = np.abs(logits(lm_research.from_pretrained(tmp_path / to), golden) - golden.outputs["logits"])
        assert (wrong * real(golden)).max() < 1e-4
        shutil.rmtree(tmp_path / to)


def test_untied_tables_are_trained_separately(gpt2: Any) -> None:
    """A run starts from both, and their gradients differ."""
    start = InitCheckpoint(gpt2[0], lm_research.config.ModelConfig(), "causal_lm")
    params = flatten(lm_research.from_pretrained(gpt2[0]).params)
    assert not start.definition.arch.tied and start.new_parts == ()
    table, output = params["decoder/embeddings/tokens"], params["next_token/table"]
    assert np.abs(np.asarray(table) - np.asarray(output)).max() > 0.1

    def loss(params):
        return start.definition.bind(params).predict_tokens(jax.numpy.ones((1, 2, 21))).logits().sum()

    gradient = flatten(jax.grad(loss)(lm_research.trees.unflatten(params)))
    assert not gradient["decoder/embeddings/tokens"].any() and gradient["next_token/table"].any()


def test_equal_tables_that_no_key_keeps_apart_are_tied(tmp_path: pathlib.Path) -> None:
    """T5ForConditionalGeneration of transformers 5.24 ties all its tables, and has another output only where the values differ."""
    golden = load_golden(golden_models.golden_path("t5_generation_gated_gelu"))
    for name, tied in (("apart", False), ("equal", True)):
        golden_models.write_checkpoint(tmp_path / name, golden)
        tensors = golden_models.golden_tensors(golden)
        tensors |= {HEAD: tensors[SHARED]} if tied else {}
        safetensors.numpy.save_file(tensors, tmp_path / name / "model.safetensors")
        lm = lm_research.from_pretrained(tmp_path / name)
        assert (lm.definition.arch.tied, lm.definition.arch.logit_scale) == (tied, 1.0) and lm.report.lines() == []


@pytest.mark.parametrize(
    ("family", "new"), [("bart", ("next_token/table",)), ("m2m_100", ("next_token/table",)), ("t5", ())]
)
def test_an_untied_output_that_files_lack_is_new(family: str, new: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    """As in transformers: `lm_head.weight` is among its missing_keys, but not of T5, whose outputs are always tied."""
    golden = load_golden(golden_models.golden_path(f"{family}_generation"))
    golden_models.write_checkpoint(tmp_path, golden)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert tensors.pop(HEAD, None) is None  # tied
    config = json.loads(golden.config) | {"tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    prefix = "" if family == "t5" else "model."
    sides = {f"{prefix}{name}": tensors[f"{prefix}{SHARED}"].copy() for name in (ENCODER, DECODER)}
    safetensors.numpy.save_file(tensors | sides, tmp_path / "model.safetensors", {"format": "pt"})
    lm = lm_research.from_pretrained(tmp_path)
    assert lm.report.new == new

"""`python -m lm_research.port_check`: which layer of a model differs from another implementation's."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import safetensors.numpy

from helpers.golden_models import golden_path, load_golden, write_checkpoint
from lm_research import port_check


def folder(name: str, directory: pathlib.Path) -> pathlib.Path:
    """A checkpoint with transformers' results in reference.npz."""
    golden = load_golden(golden_path(name))
    write_checkpoint(directory, golden)
    arrays = {f"inputs/{key}": value for key, value in golden.inputs.items()}
    np.savez(directory / port_check.REFERENCE, **arrays, **{f"outputs/{k}": v for k, v in golden.outputs.items()})
    return directory


def change(directory: pathlib.Path, name: str, rows: slice = slice(None)) -> None:
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    tensors[name] = tensors[name].copy()
    tensors[name][rows] *= 1.5
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("name", ["bert_model", "gpt2_causal", "bart_generation"])
def test_a_model_that_agrees_has_exit_code_0(
    name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert port_check.main([str(folder(name, tmp_path)), "--tolerance=2e-5"]) == 0
    printed = capsys.readouterr().out
    assert "DIFFERS" not in printed and "results agree" in printed
    golden = load_golden(golden_path(name))
    layered = [value for key, value in golden.outputs.items() if key.endswith(("hidden_states", "attentions"))]
    assert layered and printed.count("ok  ") == sum(map(len, layered)) + len(golden.outputs) - len(layered)


@pytest.mark.parametrize(
    ("tensor", "first", "part"),
    [
        ("embeddings.LayerNorm.weight", "the embeddings.", "the tables of tokens"),
        ("encoder.layer.1.attention.self.query.weight", "the attention probabilities of layer 1.", "queries and keys"),
        ("encoder.layer.0.output.dense.weight", "the output of layer 0.", "the feed-forward layer"),
        (
            "encoder.layer.1.attention.self.value.weight",
            "the output of layer 1 (after the final norm, if there is one).",
            "values, the output projection",
        ),
        ("pooler.dense.weight", "pooler_output.", "what computes it"),
    ],
)
def test_the_first_layer_that_differs_is_named(
    tensor: str, first: str, part: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = folder("bert_model", tmp_path)
    change(directory, tensor)
    assert port_check.main([str(directory), "--tolerance=2e-5"]) == 1
    _, _, verdict = capsys.readouterr().out.partition("The first difference is in ")
    assert verdict.startswith(first) and part in verdict


def test_without_attentions_all_parts_of_a_layer_are_named() -> None:
    results = [port_check.Result("the output of layer 0", 0.1, "hidden_states")]
    assert "queries and keys" in port_check.verdict(results, 1e-5) and "feed-forward" in port_check.verdict(
        results, 1e-5
    )


def test_a_difference_where_the_mask_is_0_does_not_count(tmp_path: pathlib.Path) -> None:
    directory = folder("bert_model", tmp_path)
    with np.load(directory / port_check.REFERENCE) as file:
        arrays = dict(file)
    hidden = arrays["inputs/attention_mask"] == 0
    assert hidden.any()
    arrays["outputs/last_hidden_state"][hidden] += 100
    np.savez(tmp_path / "other.npz", **arrays)
    command = [str(directory), f"--reference={tmp_path / 'other.npz'}", "--tolerance=2e-5"]
    assert port_check.main(command) == 0
    arrays["outputs/last_hidden_state"][~hidden] = np.nan
    np.savez(tmp_path / "other.npz", **arrays)
    assert port_check.main(command) == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "cannot be read as an npz file"),
        ({}, "no array named inputs/"),
        ({"inputs/input_ids": np.ones((1, 3), np.int32)}, "no array named outputs/"),
        ({"outputs/logits": np.ones((1, 3, 5))}, "has no result 'logits'"),
        ({"outputs/last_hidden_state": np.ones((1, 3, 5))}, "has shape"),
    ],
)
def test_a_reference_that_cannot_be_compared_is_refused(
    arrays: dict[str, np.ndarray] | None, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, path = folder("bert_model", tmp_path), tmp_path / "given.npz"
    if arrays is None:
        path.write_text("text")
    else:
        inputs = {"inputs/input_ids": np.ones((1, 3), np.int32)} if any("out" in key for key in arrays) else {}
        np.savez(path, **arrays, **inputs)
    assert port_check.main([str(directory), f"--reference={path}"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error

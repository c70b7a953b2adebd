"""The Python API: heads, types, meshes, errors, native and run directories, and the convert command."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import lm_research
from helpers import golden_models, tiny
from lm_research import convert
from lm_research.errors import PretrainedError, UserError
from lm_research.models.families import family_of, model_types, name_of
from lm_research.pretrained import LanguageModel
from lm_research.tokenizers.hf_tokenizer import HFTokenizer
from lm_research.trees import flatten

GOLDENS = golden_models.FOLDER


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Any:
    """Write the checkpoint of a golden and return its directory; keywords change config.json."""

    def make(name: str, **changes: Any) -> pathlib.Path:
        directory = tmp_path / name
        golden_models.write_checkpoint(directory, golden_models.load_golden(GOLDENS / f"{name}.npz"))
        config = json.loads((directory / "config.json").read_text()) | changes
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    return make


def ids(lm: LanguageModel, shape: tuple[int, ...] = (2, 5)) -> np.ndarray:
    return np.random.default_rng(0).integers(3, lm.config.vocab_size, shape)


def equal(a: Any, b: Any) -> bool:
    left, right = flatten(a), flatten(b)
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


# ---------------------------------------------------------------------------------------------------- heads


def test_another_head_is_initialised_and_named(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    directory = write("bert_pretraining")
    with caplog.at_level(logging.WARNING, "lm_research"):
        lm = lm_research.from_pretrained(directory, head="classification", num_labels=5)
    assert lm.head == "classification" and lm.config.architectures == ("BertForSequenceClassification",)
    assert lm.report.new == ("classifier/bias", "classifier/kernel")  # the pooler was pre-trained
    assert {"cls.seq_relationship.weight", "cls.predictions.bias"} <= set(lm.report.unused)
    text = caplog.text
    assert "classifier/kernel" in text and "cls.predictions.transform.dense.weight" in text
    logits = lm(input_ids=ids(lm), labels=np.array([0, 4]))
    assert logits["logits"].shape == (2, 5) and np.isfinite(logits["loss"])
    assert len(lm.config.id2label) == 5


def test_a_head_of_another_size_is_initialised_only_on_request(write: Any) -> None:
    directory = write("bert_sequence")
    asked = lm_research.from_pretrained(directory, num_labels=7)
    assert set(asked.report.reshaped) == {"classifier/bias", "classifier/kernel"} and asked.report.new == ()
    wrong = write("bert_sequence", id2label={str(i): str(i) for i in range(7)})
    with pytest.raises(
        PretrainedError, match=r"model.safetensors: tensor 'classifier.bias' has shape \(3,\).* makes it \(7,\)"
    ):
        lm_research.from_pretrained(wrong)


def test_initialised_parts_depend_on_the_seed(write: Any) -> None:
    directory = write("bert_model")
    kernels = [
        np.asarray(lm_research.from_pretrained(directory, head="span", seed=seed).params["classifier"]["kernel"])
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[0], kernels[2])
    assert 0 < np.abs(kernels[0]).max() < 0.1  # initial, not from a file


def test_a_base_model_and_one_with_a_head_read_each_others_files(write: Any) -> None:
    whole = lm_research.from_pretrained(write("gpt2_causal"))
    base = lm_research.from_pretrained(write("gpt2_causal"), head="none")
    batch = ids(whole)
    states = base(input_ids=batch)["last_hidden_state"]
    table = np.asarray(whole.params["decoder"]["embeddings"]["tokens"])
    np.testing.assert_allclose(states @ table.T, whole(input_ids=batch)["logits"], atol=1e-4)
    with pytest.raises(PretrainedError, match="head 'masked_lm' needs an encoder, but gpt2 is a decoder"):
        lm_research.from_pretrained(write("gpt2_causal"), head="masked_lm")
    with pytest.raises(PretrainedError, match="no head 'causal'. Did you mean 'causal_lm'"):
        lm_research.from_pretrained(write("gpt2_causal"), head="causal")


# ---------------------------------------------------------------------------------------------------- running


def test_names_that_gemma_3_has_in_memory_are_read(write: Any) -> None:
    """Those of state_dict() in transformers 4.52 and later, which save_pretrained changes back."""
    directory = write("gemma3_multimodal_causal")
    expected = lm_research.from_pretrained(directory).params
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    named = {"model." + name.replace("language_model.model.", "language_model."): x for name, x in tensors.items()}
    safetensors.numpy.save_file(named, directory / "model.safetensors")
    lm = lm_research.from_pretrained(directory)
    assert equal(lm.params, expected) and lm.report.lines() == []


def test_numpy_and_jax_arrays_lists_and_missing_masks_are_the_same(write: Any) -> None:
    lm = lm_research.from_pretrained(write("bert_masked"))
    batch = ids(lm)
    expected = lm(input_ids=batch)["logits"]
    for given in (batch.tolist(), jnp.asarray(batch), batch.astype(np.int64)):
        np.testing.assert_array_equal(lm(input_ids=given)["logits"], expected)
    np.testing.assert_array_equal(lm(input_ids=batch, attention_mask=np.ones_like(batch))["logits"], expected)


@pytest.mark.parametrize("name", ["bert_masked", "roberta_masked", "llama_causal", "t5_encoder"])
def test_padding_never_changes_real_positions(name: str, write: Any) -> None:
    lm = lm_research.from_pretrained(write(name))
    batch = ids(lm, (1, 6))
    pad = lm.config.pad_token_id if lm.config.pad_token_id is not None else 0
    output = "last_hidden_state" if name == "t5_encoder" else "logits"
    alone = lm(input_ids=batch)[output]
    right = lm(input_ids=np.pad(batch, ((0, 0), (0, 3)), constant_values=pad), attention_mask=[[1] * 6 + [0] * 3])
    np.testing.assert_allclose(right[output][:, :6], alone, atol=1e-5)
    if name in ("roberta_masked", "llama_causal", "t5_encoder"):  # families whose positions do not count padding
        left = lm(input_ids=np.pad(batch, ((0, 0), (3, 0)), constant_values=pad), attention_mask=[[0] * 3 + [1] * 6])
        np.testing.assert_allclose(left[output][:, 3:], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2_causal", "llama_causal", "mistral_causal", "bart_generation", "t5_generation"])
def test_no_logit_depends_on_a_later_token(name: str, write: Any) -> None:
    lm = lm_research.from_pretrained(write(name))
    batch = ids(lm, (1, 8))
    key = "decoder_input_ids" if lm.definition.arch.kind == "encoder-decoder" else "input_ids"
    given = {"input_ids": batch, key: batch}
    before = lm(**given)["logits"]
    for place in (7, 4):
        other = batch.copy()
        other[0, place] = (other[0, place] + 1) % lm.config.vocab_size
        after = lm(**{"input_ids": batch, key: other})["logits"]
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert np.abs(after[:, place:] - before[:, place:]).max() > 1e-3


@pytest.mark.parametrize("name", ["albert_masked", "llama_causal", "t5_generation", "bart_generation"])
def test_unrolled_layers_and_bfloat16_agree(name: str, write: Any) -> None:
    directory = write(name)
    lm, low = lm_research.from_pretrained(directory), lm_research.from_pretrained(directory, dtype="bfloat16")
    given = {"input_ids": ids(lm)}
    if lm.definition.arch.kind == "encoder-decoder":
        given["decoder_input_ids"] = ids(lm, (2, 4))
    expected = np.asarray(lm(**given)["logits"])
    from lm_research.models.definition import define

    unrolled = define(lm.definition.arch.replace(scan_layers=False), lm.definition.head)
    again = LanguageModel(unrolled, lm.params, lm.family, lm.config)(**given)["logits"]
    np.testing.assert_allclose(again, expected, atol=2e-5)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(low.params))
    rounded = np.asarray(low(**given)["logits"])
    assert rounded.dtype == np.float32  # logits are float32, whatever type the model computes in
    # Unit roundoff 2**-8; the weights are large here and roundings add up over two blocks.
    assert np.sqrt(((rounded - expected) ** 2).mean() / (expected**2).mean()) < 0.05


@pytest.mark.parametrize("name", ["bert_masked", "gpt2_causal", "t5_generation", "bart_generation"])
def test_tied_tables_stay_tied_through_a_step_and_a_round_trip(name: str, write: Any, tmp_path: pathlib.Path) -> None:
    lm = lm_research.from_pretrained(write(name))
    batch = {"input_ids": ids(lm), "labels": ids(lm)}
    arrays = lm._checks(batch)

    def loss(params):
        return lm._forward(params, arrays, False)["loss"]

    lm.params = jax.tree.map(lambda p, g: p - 0.1 * g, lm.params, jax.grad(loss)(lm.params))
    lm.save_pretrained(tmp_path / "saved")
    again = lm_research.from_pretrained(tmp_path / "saved")
    tables = [
        path for path, leaf in flatten(again.params).items() if leaf.shape[0] == lm.config.vocab_size and leaf.ndim == 2
    ]
    assert len(tables) == 1 and equal(again.params, lm.params)
    np.testing.assert_array_equal(again(**batch)["loss"], lm(**batch)["loss"])


@pytest.mark.parametrize(
    ("name", "remat"),
    [("llama_causal", "full"), ("t5_generation", "names"), ("bart_generation", "names"), ("albert_masked", "full")],
)
def test_remat_changes_no_gradient(name: str, remat: str, write: Any) -> None:
    from lm_research.models.definition import define
    from lm_research.models.forward import forward

    lm = lm_research.from_pretrained(write(name))
    arrays = lm._checks({"input_ids": ids(lm), "labels": ids(lm)})

    def gradient(remat: str) -> Any:
        definition = define(lm.definition.arch.replace(remat=remat), lm.definition.head)
        return tiny.jit(jax.grad(lambda p: forward(definition.bind(p), lm.head, arrays)["loss"]))(lm.params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient(remat), gradient("none"))


def test_a_decoders_inputs_are_made_from_labels_as_each_family_does(write: Any) -> None:
    lm = lm_research.from_pretrained(write("mbart_generation"))
    labels = np.array([[5, 6, 7, 2, 9], [8, 2, 9, -100, -100]])  # the last real token is the language's code, 9
    made = lm._checks.decoder_inputs({"labels": labels})
    np.testing.assert_array_equal(made, [[9, 5, 6, 7, 2], [9, 8, 2, 9, lm.config.pad_token_id]])
    t5 = lm_research.from_pretrained(write("t5_generation"))
    made = t5._checks.decoder_inputs({"labels": labels})
    start, pad = t5.config.decoder_start_token_id or 0, t5.config.pad_token_id
    np.testing.assert_array_equal(made, [[start, 5, 6, 7, 2], [start, 8, 2, 9, pad]])
    # T5GemmaConfig of transformers 5.24 takes the tokens that it lacks from the decoder's.
    pair = lm_research.from_pretrained(write("t5gemma_generation", bos_token_id=None))
    assert pair.config.decoder.bos_token_id == 2 and pair._checks.decoder_inputs({"labels": labels})[:, 0].tolist() == [
        2,
        2,
    ]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "needs input_ids"),
        ({"input_ids": [[1, 2], [3]]}, "padding=True"),
        ({"input_ids": [1, 2]}, "takes 2 dimensions"),
        ({"input_ids": [[0.5]]}, "it takes integers"),
        ({"input_ids": [[10**6]]}, "1000000, outside of 0 to"),
        ({"input_ids": [[-1]]}, "-1, outside of 0 to"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, r"attention_mask has shape \(1, 1\)"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0, 9]]}, "token_type_ids holds 9"),
        ({"input_ids": [[1] * 600]}, "rows of 600 tokens, but the model has positions for"),
        ({"input_ids": [[1]], "decoder_input_ids": [[1]]}, "plain encoder"),
        ({"input_ids": [[1]], "inputs": [[1]]}, "no input inputs"),
    ],
)
def test_wrong_inputs_are_named(inputs: dict, words: str, write: Any) -> None:
    lm = lm_research.from_pretrained(write("bert_masked"))
    with pytest.raises(UserError, match=words):
        lm(**inputs)


# ---------------------------------------------------------------------------------------------------- directories


def test_native_directories_round_trip_bit_for_bit(write: Any, tmp_path: pathlib.Path) -> None:
    directory = write("t5_generation")
    assert convert.main(["--source", str(directory), "--output", str(tmp_path / "native"), "--to", "native"]) == 0
    assert convert.main(["--source", str(tmp_path / "native"), "--output", str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == json.loads(
        (directory / "config.json").read_text()
    )
    lm = lm_research.from_pretrained(tmp_path / "native", head="classification", num_labels=4)
    assert set(lm.report.new) == {
        f"{part}/{name}" for part in ("classifier", "pooler/dense") for name in ("bias", "kernel")
    }
    assert convert.main(["--source", str(directory), "--output", str(tmp_path / "hf"), "--to", "hf"]) == 2  # not empty


def test_shards_and_other_types(write: Any, tmp_path: pathlib.Path) -> None:
    lm = lm_research.from_pretrained(write("bart_generation"), dtype="bfloat16")
    lm.save_pretrained(tmp_path / "sharded", max_shard_bytes=4000)
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 3
    again = lm_research.from_pretrained(tmp_path / "sharded")
    assert equal(again.params, lm.params) and again.definition.arch.dtype == "bfloat16"


def test_a_mesh_divides_the_parameters_by_the_rules(write: Any) -> None:
    mesh = jax.make_mesh(
        (1, 1, 1, 1), ("data", "fsdp", "context", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 4
    )
    directory = write("llama_causal")
    plain, spread = lm_research.from_pretrained(directory), lm_research.from_pretrained(directory, mesh=mesh)
    assert equal(plain.params, spread.params)
    specs = {path: leaf.sharding.spec for path, leaf in flatten(spread.params).items()}
    assert specs["decoder/embeddings/tokens"] == jax.sharding.PartitionSpec("tensor", "fsdp")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: shutil.rmtree(d), "does not exist"),
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not JSON: .* Download it again"),
        (lambda d: (d / "config.json").write_text("[]"), "expected object, got array"),
        (
            lambda d: (d / "config.json").write_text('{"model_type": "mamba"}'),
            "model_type is 'mamba', which is not supported.* docs/families.md lists",
        ),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
        (lambda d: os.truncate(d / "model.safetensors", 5000), "model.safetensors"),
        (lambda d: _change(d, num_hidden_layers=9), "no tensor 'bert.encoder.layer.*config.json requires"),
        (lambda d: _change(d, hidden_size=48, num_attention_heads=3), "has shape"),
        (lambda d: _change(d, hidden_act="gelu_12"), "hidden_act is 'gelu_12'.*Supported: gelu"),
        (lambda d: _change(d, hidden_size="wide"), "hidden_size is 'wide'"),
        (lambda d: _change(d, position_embedding_type="relative_key"), "position_embedding_type"),
        (lambda d: _change(d, architectures=["BertForDancing"]), "BertForDancing.*BertForMaskedLM"),
    ],
)
def test_damaged_directories_are_refused_by_name(damage: Any, words: str, write: Any) -> None:
    directory = write("bert_masked")
    damage(directory)
    with pytest.raises(PretrainedError, match=words):
        lm_research.from_pretrained(directory)


def _change(directory: pathlib.Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("way", ["save_pretrained", "save_native"])
def test_a_place_that_cannot_be_written_is_named(write: Any, way: str, tmp_path: pathlib.Path) -> None:
    """A file has that name, or that of a parent; Linux reports EEXIST and ENOTDIR."""
    lm = lm_research.from_pretrained(write("bert_model"))
    (tmp_path / "file").write_text("kept")
    for place in ("file", "file/inside"):
        with pytest.raises(UserError, match=f"{tmp_path}/{place} cannot be used: .* Check the path"):
            getattr(lm, way)(tmp_path / place)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_native_directory_that_changed_on_disk_is_refused(write: Any, tmp_path: pathlib.Path) -> None:
    lm_research.from_pretrained(write("bert_model")).save_native(tmp_path / "native")
    content = json.loads((tmp_path / "native" / "model.json").read_text())
    content["digests"]["encoder/embeddings/tokens"] = "0" * 16
    (tmp_path / "native" / "model.json").write_text(json.dumps(content))
    with pytest.raises(PretrainedError, match="array encoder/embeddings/tokens is damaged"):
        lm_research.from_pretrained(tmp_path / "native")


def test_every_family_writes_a_config_that_reads_the_same(write: Any) -> None:
    """config.json made from the architecture alone, as for a model trained here, gives that architecture."""
    seen = set()
    for path in golden_models.golden_paths("outputs"):
        golden = golden_models.load_golden(path)
        family = family_of(name_of(json.loads(golden.config)))
        arch = family.from_hf(json.loads(golden.config), set(golden.weights))
        made = {"model_type": golden.family, **family.to_hf(arch)}
        again = family.from_hf(json.loads(json.dumps(made)), set(golden.weights))

        def wide(arch):
            return arch.replace(head_size=arch.head_width, num_kv_heads=arch.kv_heads)

        assert wide(again) == wide(arch), path.stem
        seen.add(golden.family)
    assert seen == {*model_types(), "encoder-decoder"}


def test_a_run_directory_is_a_model(bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lm = lm_research.from_pretrained(bert_run)
    assert isinstance(lm.tokenizer, HFTokenizer) and lm.head == "pretraining"
    tokens = np.array([[lm.tokenizer.cls_id, *lm.tokenizer.encode("In the beginning")[:5], lm.tokenizer.sep_id]])
    logits = lm(input_ids=tokens)["prediction_logits"]
    assert convert.main(["--source", str(bert_run), "--output", str(tmp_path / "hf"), "--to", "hf"]) == 0
    again = lm_research.from_pretrained(tmp_path / "hf")
    assert again.config.architectures == ("BertForPreTraining",) and again.tokenizer.digest == lm.tokenizer.digest
    np.testing.assert_allclose(again(input_ids=tokens)["prediction_logits"], logits, atol=1e-6)  # one program each


def test_a_run_reads_texts_as_in_training(
    bert_run: pathlib.Path, gpt_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """From the objectives: BERT's rows are [CLS] text [SEP]; a causal model's documents are separated by [SEP], so that a text follows one.

    The vocabularies begin with [PAD] [UNK] [CLS] [SEP].
    """
    for run, head, tail in ((bert_run, [2], [3]), (gpt_run, [3], [])):
        lm = lm_research.from_pretrained(run)
        batch = lm.tokenizer(["In the beginning", "God"], padding=True)
        rows = zip(batch["input_ids"], batch["attention_mask"], ["In the beginning", "God"], strict=True)
        for row, mask, text in rows:
            assert row[mask > 0].tolist() == head + lm.tokenizer.encode(text) + tail
        first, last = head[0], 3
        named = {"bos_token_id": first, "eos_token_id": last, "pad_token_id": 0}
        assert {name: lm.config[name] for name in named} == named
        folder = tmp_path / run.name
        lm.save_pretrained(folder)
        again = lm_research.from_pretrained(folder)
        np.testing.assert_array_equal(
            again.tokenizer(["In the beginning", "God"], padding=True)["input_ids"], batch["input_ids"]
        )
        settings = folder / "generation_config.json"
        assert settings.exists() == (lm.head == "causal_lm")
        assert not settings.exists() or json.loads(settings.read_text()) == named
    assert again.generate(prompts="God", max_new_tokens=4) == lm.generate(prompts="God", max_new_tokens=4)


def test_a_checkpoint_of_a_run_is_a_model(bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Any of them, by its folder; digests come from its own manifest."""
    first = min((bert_run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert convert.main(["--source", str(first), "--output", str(tmp_path / "native"), "--to", "native"]) == 0
    manifest = json.loads((first / "files" / "manifest.json").read_text())
    digests = json.loads((tmp_path / "native" / "model.json").read_text())["digests"]
    assert (
        digests
        and {f"params/{path}": digest for path, digest in digests.items()}.items() <= manifest["digests"].items()
    )
    newest, chosen = (jax.tree.leaves(lm_research.from_pretrained(path).params) for path in (bert_run, first))
    assert all(not np.array_equal(x, y) for x, y in zip(newest, chosen, strict=True))


def test_the_last_checkpoints_are_averaged(bert_run: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    """The mean of each parameter over the two newest checkpoints, which the run kept."""
    steps = sorted(int(path.name) for path in (bert_run / "checkpoints").iterdir() if path.name.isdigit())[-2:]
    both = [lm_research.from_pretrained(bert_run / "checkpoints" / str(step)).params for step in steps]
    command = ["--source", str(bert_run), "--to", "native"]
    assert convert.main([*command, "--output", str(tmp_path / "mean"), "--average", "2"]) == 0
    found = lm_research.from_pretrained(tmp_path / "mean").params
    expected = jax.tree.map(lambda a, b: (np.asarray(a, np.float64) + np.asarray(b, np.float64)) / 2, *both)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8)
    assert convert.main([*command, "--output", str(tmp_path / "other"), "--average", "99"]) == 2
    assert "but 99 are to be averaged" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_run_without_its_model_file_is_refused(bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Instead of guessing a head from the names of arrays."""
    run = shutil.copytree(bert_run, tmp_path / "run")
    last = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1)
    (last / "files" / "model.json").unlink()
    with pytest.raises(PretrainedError, match=f"checkpoint {last.name} has no model.json, which describes"):
        lm_research.from_pretrained(run)


def test_an_averaged_run_gives_its_average(gpt_run: pathlib.Path) -> None:
    lm = lm_research.from_pretrained(gpt_run)
    assert lm.head == "causal_lm" and lm.family == "gpt2"
    steps = sorted(int(path.name) for path in (gpt_run / "checkpoints").iterdir() if path.name.isdigit())
    manifest = json.loads((gpt_run / "checkpoints" / str(steps[-1]) / "files" / "manifest.json").read_text())
    from lm_research.models.digest import digest_arrays

    digests = {f"ema/{path}": digest for path, digest in digest_arrays(lm.params).items()}
    assert digests.items() <= manifest["digests"].items()


@pytest.mark.parametrize("kind", ["bert_run", "gpt_run"])
def test_a_run_embeds_texts_in_the_form_of_its_training(kind: str, request: pytest.FixtureRequest) -> None:
    """[CLS] text [SEP], or of a causal model the separator and the text: the mean of its final states, at length 1."""
    run = request.getfixturevalue(kind)
    lm, bare = lm_research.from_pretrained(run), lm_research.from_pretrained(run, head="none")
    texts = ["the king said to him", "bread " * 60, "a"]
    found = lm.embed(texts, batch_size=2)
    for row, text in zip(found, texts, strict=True):
        own = lm.tokenizer
        ids = [own.sep_id, *own.encode(text)][:32]
        if kind == "bert_run":
            ids = [own.cls_id, *own.encode(text)[:30], own.sep_id]
        mean = np.asarray(bare(input_ids=np.array([ids]))["last_hidden_state"])[0].mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)
    assert found.shape == (3, 32) and abs(found[0] @ found[2]) < 0.9999


@pytest.mark.slow
@pytest.mark.skipif("MINILM" not in os.environ, reason="set MINILM to the model directory; see goldens/make_goldens.py")
def test_a_real_encoder_has_its_reference_embeddings() -> None:
    golden = dict(np.load(pathlib.Path(__file__).parent / "goldens" / "minilm.npz"))
    embeddings = lm_research.from_pretrained(os.environ["MINILM"]).embed(golden["sentences"].tolist())
    np.testing.assert_allclose(embeddings, golden["embeddings"], atol=1e-5)
    assert embeddings[0] @ embeddings[1] > 0.8 > 0.2 > embeddings[0] @ embeddings[2]


# ---------------------------------------------------------------------------------------------------- other files


def _flax_tree(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Tensors under the names that the removed Flax classes gave them, nested; their kernels are [in, out]."""
    tree: dict[str, Any] = {}
    for name, value in tensors.items():
        *parents, last = name.split(".")
        if last == "weight" and value.ndim == 1 and not parents[-1].endswith("layer_norm"):
            last = "scale"
        elif last == "weight" and value.ndim == 2:
            table = parents[-1].endswith(("embeddings", "shared", "wte", "wpe", "relative_attention_bias"))
            last, value = ("embedding", value) if table else ("kernel", value.T)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.ascontiguousarray(value)
    return tree


@pytest.mark.parametrize("name", ["bert_pretraining", "gpt2_causal", "t5_generation"])
def test_orphaned_flax_files_give_the_same_model(name: str, write: Any) -> None:
    from flax import serialization

    directory = write(name)
    expected = lm_research.from_pretrained(directory).params
    (directory / "model.safetensors").unlink()
    tensors = golden_models.golden_tensors(golden_models.load_golden(GOLDENS / f"{name}.npz"))
    (directory / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(_flax_tree(tensors)))
    lm = lm_research.from_pretrained(directory)
    assert equal(lm.params, expected) and lm.report.lines() == []


def test_files_of_the_flax_classes_name_them(write: Any) -> None:
    lm = lm_research.from_pretrained(write("bert_masked", architectures=["FlaxBertForMaskedLM"]))
    assert lm.head == "masked_lm"


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "\ud800", "~no_such_user_here/model", ""])
def test_names_that_no_directory_can_have(name: str, tmp_path: pathlib.Path) -> None:
    for given in ({"path": name}, {"path": tmp_path, "adapter": name or "\0"}):
        with pytest.raises(PretrainedError, match="path"):
            lm_research.from_pretrained(**given)


def test_a_model_is_loaded_without_a_tokenizer_whose_class_is_not_supported(
    write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """RoFormer's published directories have a vocab.txt whose words only jieba can split."""
    directory = write("gpt2_causal")
    (directory / "vocab.txt").write_text("[UNK]\nthe\n")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "RoFormerTokenizer"}')
    assert lm_research.from_pretrained(directory).tokenizer is None
    assert "RoFormerTokenizer is not supported" in caplog.text

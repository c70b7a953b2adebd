"""Adapters in peft's format: reading peft's own files with their base, writing files for it, and what is refused."""

from __future__ import annotations

import json
import pathlib
import shutil
import types
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import lm_research
from helpers import golden_models, tiny
from lm_research import convert
from lm_research.config import LoraConfig, ModelConfig
from lm_research.errors import PretrainedError
from lm_research.interop import huggingface, peft
from lm_research.interop.peft_writer import write_adapter
from lm_research.interop.safetensors_file import read_safetensors
from lm_research.models.adapters import adapt, merged
from lm_research.models.definition import define
from lm_research.models.families import define_model
from lm_research.run.init_checkpoint import InitCheckpoint
from lm_research.trees import flatten

GOLDENS = pathlib.Path(__file__).parent / "peft_goldens"
HEADS: dict[str, dict[str, Any]] = {"bert": {"head": "classification", "num_labels": 3}, "gpt2": {}}


def read(name: str, **options: Any) -> lm_research.pretrained.LanguageModel:
    return lm_research.from_pretrained(GOLDENS / name / "base", **HEADS[name], **options)


@pytest.mark.parametrize("name", HEADS)
def test_base_plus_adapter_matches_pefts_merged_model(name: str) -> None:
    """BERT: two ranks and scales, a fully trained classifier, a base without the head. GPT-2: matrices [in, out], rsLoRA."""
    golden = np.load(GOLDENS / name / "outputs.npz")
    lm = read(name, adapter=GOLDENS / name / "adapter")
    found = np.asarray(lm(input_ids=golden["ids"].astype(np.int32))["logits"])
    np.testing.assert_allclose(found, golden["logits"], rtol=1e-4, atol=2e-5)
    assert lm.report.lines() == []
    alone = np.asarray(read(name)(input_ids=golden["ids"].astype(np.int32))["logits"])
    assert np.abs(alone - golden["logits"]).max() > 0.1


@pytest.mark.parametrize("name", ["head_saved", "table_saved", "head_adapted", "table_adapted"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_adapter_of_one_use_of_a_tied_table_leaves_the_other_unchanged(
    name: str, wrapped: bool, tmp_path: pathlib.Path
) -> None:
    """The logits are those of peft's own model (peft_goldens/make_goldens.py), also with the names of a compiled model."""
    base, adapter = GOLDENS / "gpt2" / "base", GOLDENS / "gpt2" / name
    if wrapped:
        tensors = safetensors.numpy.load_file(adapter / "adapter_model.safetensors")
        adapter = pathlib.Path(shutil.copytree(adapter, tmp_path / "adapter"))
        renamed = {name.replace("model.model.", "model.model._orig_mod.module."): x for name, x in tensors.items()}
        safetensors.numpy.save_file(renamed, adapter / "adapter_model.safetensors")
    lm, ids = lm_research.from_pretrained(base, adapter=adapter), np.load(GOLDENS / "gpt2" / "outputs.npz")["ids"]
    logits = np.load(GOLDENS / "gpt2" / name / "logits.npz")["logits"]
    np.testing.assert_allclose(np.asarray(lm(input_ids=ids)["logits"]), logits, rtol=1e-4, atol=2e-5)
    assert not lm.config.tie_word_embeddings and "different values" in " ".join(lm.report.lines())


def test_a_directory_that_names_its_base_is_a_model(tmp_path: pathlib.Path) -> None:
    shutil.copytree(GOLDENS / "gpt2" / "adapter", tmp_path / "adapter")
    with pytest.raises(PretrainedError, match="belongs to 'somewhere/else', which is not a directory here"):
        lm_research.from_pretrained(tmp_path / "adapter")
    _change(tmp_path / "adapter", base_model_name_or_path=str(GOLDENS / "gpt2" / "base"))
    whole, parts = (flatten(lm.params) for lm in (lm_research.from_pretrained(tmp_path / "adapter"), read("gpt2")))
    changed = {path for path in parts if not np.array_equal(whole[path], parts[path])}
    assert changed == {f"decoder/layers/attention/{name}/kernel" for name in ("query", "key", "value", "output")}


def test_the_head_comes_from_the_adapter(tmp_path: pathlib.Path) -> None:
    """It sets the task and the classes of the classifier, where the base has neither."""
    shutil.copytree(GOLDENS / "bert" / "adapter", tmp_path / "adapter")
    _change(tmp_path / "adapter", base_model_name_or_path=str(GOLDENS / "bert" / "base"), task_type="SEQ_CLS")
    golden, lm = np.load(GOLDENS / "bert" / "outputs.npz"), lm_research.from_pretrained(tmp_path / "adapter")
    assert lm.definition.head.num_labels == 3 and len(lm.config.id2label) == 3
    found = np.asarray(lm(input_ids=golden["ids"].astype(np.int32))["logits"])
    np.testing.assert_allclose(found, golden["logits"], rtol=1e-4, atol=2e-5)
    start = InitCheckpoint(tmp_path / "adapter", ModelConfig(), "classification", 3)
    assert start.tokenizer == GOLDENS / "bert" / "base" and start.new_parts == ("^classifier/",)
    start = InitCheckpoint(GOLDENS / "bert" / "base", ModelConfig(), "masked_lm")
    assert start.new_parts == ("^masked_lm/",)


def test_convert_adds_an_adapter(tmp_path: pathlib.Path) -> None:
    base, adapter = (str(GOLDENS / "gpt2" / part) for part in ("base", "adapter"))
    assert convert.main(["--source", base, "--adapter", adapter, "--output", str(tmp_path / "out"), "--to", "hf"]) == 0
    expected = flatten(read("gpt2", adapter=adapter).params)
    found = flatten(lm_research.from_pretrained(tmp_path / "out").params)
    assert all(np.array_equal(found[path], expected[path]) for path in expected)


@pytest.mark.parametrize(
    ("family", "head", "targets"),
    [
        ("bert", "classification", "attention/(query|value)/,feed_forward/up"),
        ("gpt2", "causal_lm", "attention/(query|value)/,attention/output"),  # two of three parts of one stored matrix
        ("albert", "classification", "attention/query"),
        ("t5", "seq2seq_lm", "attention/(query|value)/"),
        ("llama", "causal_lm", "feed_forward"),
    ],
)
@pytest.mark.parametrize("rslora", [False, True])
def test_written_adapters_give_the_same_logits_when_read(
    family: str, head: str, targets: str, rslora: bool, tmp_path: pathlib.Path
) -> None:
    base = define_model(tiny.config("gpt2", model={"family": family}).model, tiny.VOCAB, head)
    full = "^classifier/" if head == "classification" else ""
    adapted = adapt(base, LoraConfig(rank=2, alpha=5.0, target_modules=targets, rslora=rslora, modules_to_save=full))
    params = tiny.random_params(adapted)
    plain = {path: leaf for path, leaf in flatten(params).items() if "lora_" not in path}
    body = define(base.arch, base.head)
    huggingface.save(tmp_path / "base", body, family, lm_research.trees.unflatten(plain))
    write_adapter(tmp_path / "adapter", adapted, family, params, str(tmp_path / "base"), "")
    found = flatten(lm_research.from_pretrained(tmp_path / "adapter").params)
    for path, leaf in flatten(merged(adapted, params)[1]).items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-5, atol=1e-5, err_msg=path)
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    config = json.loads(text)
    assert text == json.dumps(config, indent=2, sort_keys=True) + "\n"  # as peft writes it
    assert config["modules_to_save"] == (["classifier"] if full else None)
    # Of the two parts of a joined matrix, the rank is 2 x 2, and its alpha keeps 5 / 2 or 5 / sqrt(2).
    joined = [
        rf"transformer\.h\.{layer}\.attn\.c_attn" for layer in range(len(base.arch.layer_specs)) if family == "gpt2"
    ]
    alpha = 5 * 2**0.5 if rslora else 10
    assert config["rank_pattern"] == dict.fromkeys(joined, 4)
    assert config["alpha_pattern"] == pytest.approx(dict.fromkeys(joined, alpha))
    assert config["fan_in_fan_out"] == (family == "gpt2") and config["lora_dropout"] == 0


def test_names_and_shapes_match_peft(tmp_path: pathlib.Path) -> None:
    """The golden adapter's targets: the same tensors, except for the rank of values, which peft was set to halve."""
    base = define_model(tiny.config("bert", model={"intermediate_size": 24}).model, 40, "classification")
    lora = LoraConfig(
        rank=4, target_modules="query,value,attention/output,feed_forward/down", modules_to_save="^classifier/"
    )
    adapted = adapt(base, lora)
    write_adapter(tmp_path, adapted, "bert", tiny.random_params(adapted), "base", "bert")
    ours, theirs = (
        {name: tensor.shape for name, tensor in read_safetensors(folder / "adapter_model.safetensors").items()}
        for folder in (tmp_path, GOLDENS / "bert" / "adapter")
    )
    assert ours.keys() == theirs.keys()
    same = [name for name in ours if "value" not in name and "classifier" not in name]
    assert [ours[name] for name in same] == [theirs[name] for name in same]


# Golden model -> the matrices that peft adapted there.
MODULES = {
    "nomic_bert_masked": "attention/,feed_forward/",
    "gte_masked": "attention/,feed_forward/",
    "gemma3_multimodal_causal": "attention/,feed_forward/",
    "t5gemma2_generation": "attention/,feed_forward/",
    "gpt_neox_causal": "attention/(query|key|value)/",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "gte_masked" else pytest.mark.slow) for name in MODULES]
)
def test_names_of_modules_that_differ_from_those_of_stored_tensors(name: str, tmp_path: pathlib.Path) -> None:
    """Logits are those of peft's model without merging; names and shapes that are written are those of peft's adapter."""
    golden, adapter = golden_models.load_golden(golden_models.golden_path(name)), GOLDENS / "modules" / name
    golden_models.write_checkpoint(tmp_path / "base", golden)
    lm = lm_research.from_pretrained(tmp_path / "base", adapter=adapter)
    assert lm.report.lines() == []
    logits, expected = np.asarray(lm(**golden.inputs)["logits"]), np.load(adapter / "logits.npz")["logits"]
    real = golden.inputs["attention_mask"][..., None] if lm.definition.arch.encoder is None else 1
    np.testing.assert_allclose(logits * real, expected * real, rtol=1e-3, atol=5e-4)
    adapted = adapt(lm.definition, LoraConfig(rank=1, target_modules=MODULES[name]))
    write_adapter(tmp_path / "ours", adapted, lm.family, tiny.random_params(adapted), "base", golden.family)
    ours, theirs = (
        {key: tensor.shape for key, tensor in read_safetensors(folder / "adapter_model.safetensors").items()}
        for folder in (tmp_path / "ours", adapter)
    )
    if name == "gpt_neox_causal":  # three adapters of the parts of one matrix are one of rank 3
        assert {key for key in theirs if "lm_head" not in key} == ours.keys()
    else:
        assert ours == theirs


def _change(folder: pathlib.Path, **keys: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


WRONG = {
    "peft_type is 'IA3'": {"peft_type": "IA3"},
    "lora_alpha None; only LORA with a number": {"lora_alpha": None},
    "use_dora is True, which is not supported": {"use_dora": True},
}


@pytest.mark.parametrize("message", WRONG)
def test_other_kinds_of_adapters_are_refused(message: str, tmp_path: pathlib.Path) -> None:
    shutil.copytree(GOLDENS / "gpt2" / "adapter", tmp_path / "adapter")
    _change(tmp_path / "adapter", **WRONG[message])
    with pytest.raises(PretrainedError, match=message):
        read("gpt2", adapter=tmp_path / "adapter")


def test_adapters_of_another_model_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PretrainedError, match="which the base does not have"):
        read("gpt2", adapter=GOLDENS / "bert" / "adapter")
    with pytest.raises(PretrainedError, match="cannot be read as the config of a peft adapter"):
        read("gpt2", adapter=tmp_path)
    given = ["--source", str(GOLDENS / "gpt2" / "base"), "--output", str(tmp_path / "out"), "--to", "peft"]
    assert convert.main(given) == 2


def source_of(names: list[str], tied: dict[str, str] | None = None, **more: Any) -> types.SimpleNamespace:
    """Parts of an AdaptedSource."""
    base = types.SimpleNamespace(names=names)
    return types.SimpleNamespace(base=base, _tied=tied or {}, _modules={}, _directory=pathlib.Path("a"), **more)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("wte.weight", "wte.weight"),  # the name itself, although another one ends with it
        ("model.transformer.wte.weight", "transformer.wte.weight"),  # the longest name that it ends with
        ("h.0.query.weight", "bert.h.0.query.weight"),  # or that ends with it
        ("head.weight", "lm_head.head.weight"),
        ("ead.weight", None),  # names end at dots
    ],
)
def test_names_with_and_without_prefixes(name: str, found: str | None) -> None:
    names = ["wte.weight", "transformer.wte.weight", "bert.h.0.query.weight"]
    source = source_of(names, {"lm_head.head.weight": "wte.weight"})
    if found:
        assert peft.AdaptedSource._name_in_base(source, name) == found
        return
    assert peft.AdaptedSource._name_in_base(source, name, must=False) == name
    with pytest.raises(PretrainedError, match="changes 'ead.weight', which the base does not have"):
        peft.AdaptedSource._name_in_base(source, name)


@pytest.mark.parametrize(
    ("a", "b", "shape", "table", "fan_in", "transposed"),
    [
        ((2, 3), (5, 2), (5, 3), False, False, False),  # B A is [out, in], as torch's matrices
        ((2, 3), (5, 2), (3, 5), False, True, True),  # as GPT-2's
        ((2, 3), (5, 2), (3, 5), False, False, True),  # by its shape
        ((2, 3), (3, 2), (3, 3), False, False, False),
        ((2, 3), (3, 2), (3, 3), False, True, True),  # of a square one the setting decides
        ((2, 7), (3, 2), (7, 3), True, False, True),  # peft multiplies tables [vocabulary, width] by A^T B^T
        ((2, 3), (3, 2), (3, 3), True, False, True),
        ((2, 3), (5, 2), (5, 4), False, False, None),
        ((2, 3), (5, 4), (5, 3), False, False, None),
        ((0, 3), (5, 0), (5, 3), False, False, None),
        ((2, 3, 1), (5, 2), (5, 3), False, False, None),
    ],
)
def test_which_products_are_transposed(
    a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int, int], table: bool, fan_in: bool, transposed: bool | None
) -> None:
    parts = [types.SimpleNamespace(shape=size, dtype=np.dtype(np.float32)) for size in (a, b)]
    product = peft.Product("x", *parts)
    source = source_of([], _tables={"x"} if table else set(), shape=lambda name: shape)
    source._config = {"fan_in_fan_out": fan_in}
    if transposed is None:
        with pytest.raises(PretrainedError, match="the adapter of 'x'"):
            peft.AdaptedSource._transposed(source, "x", product)
    else:
        assert peft.AdaptedSource._transposed(source, "x", product) is transposed


@pytest.mark.parametrize(
    ("module", "rslora", "scale"),
    [("h.0.query", False, 2.0), ("h.0.query", True, 4.0), ("h.0.value", False, 8.0), ("h.0.values", False, 2.0)],
)
def test_scales(module: str, rslora: bool, scale: float) -> None:
    """Alpha 8 over the rank, 4, or its root; a pattern for a module is the end of its name."""
    source = types.SimpleNamespace(_config={"lora_alpha": 8, "use_rslora": rslora, "alpha_pattern": {"value": 32}})
    assert peft.AdaptedSource._scale(source, module, 4) == scale

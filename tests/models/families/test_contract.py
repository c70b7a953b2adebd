"""What must hold for every family, including one defined here, with or without goldens."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers import tiny
from lm_research.config import Config, LoraConfig, ModelConfig, resolve, to_dict
from lm_research.config.stored import migrated
from lm_research.config.variants import import_plugins
from lm_research.errors import ConfigError, PretrainedError
from lm_research.interop.huggingface import hf_config
from lm_research.interop.native_checkpoint import describe
from lm_research.interop.peft_writer import write_adapter
from lm_research.interop.weight_reader import weights_of
from lm_research.models.adapters import adapt
from lm_research.models.architecture import Architecture
from lm_research.models.definition import define
from lm_research.models.families import DEFAULT_HEADS, FAMILIES, define_model, model_types
from lm_research.models.families.base import Family
from lm_research.models.families.common import from_config
from lm_research.models.forward import forward, shift_right
from lm_research.models.head_kinds import HEADS
from lm_research.models.heads import HeadSpec
from lm_research.pretrained import LanguageModel, from_pretrained
from lm_research.run.init_checkpoint import InitCheckpoint, apply_init_checkpoint
from lm_research.trees import flatten

SHAPE = dict(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=64, max_length=32, dropout_rate=0.0)
NAMES = sorted(FAMILIES)
# One of each kind of block learns and writes in the default run.
LEARNS = "albert bert deberta_v2 gemma3 gpt2 llama mixtral modernbert t5 t5gemma2".split()


def tiny_config(name: str) -> ModelConfig:
    return FAMILIES.make(name, attention_dropout_rate=0.0, **SHAPE)


def rows() -> dict[str, jax.Array]:
    tokens_BL = np.random.default_rng(0).integers(5, 64, (2, 8))
    return {"input_ids": jnp.asarray(tokens_BL), "attention_mask": jnp.ones((2, 8), jnp.int32)}


@pytest.mark.parametrize("name", NAMES)
def test_it_has_no_public_member_that_is_not_declared(name: str) -> None:
    assert {one for one in dir(FAMILIES[name]) if not one.startswith("_")} <= set(dir(Family))
    assert set(FAMILIES[name].classes.values()) <= set(HEADS)
    lines, _ = inspect.getsourcelines(inspect.getmodule(type(FAMILIES[name])))
    assert len(lines) <= 150


@pytest.mark.parametrize("name", NAMES)
def test_its_published_sizes_use_its_own_keys(name: str) -> None:
    for size in FAMILIES[name].sizes.values():
        assert resolve({"model": {"family": name, **size}}).model == FAMILIES.make(name, **size)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [("bert", "variant", "v1.0"), ("gpt2", "embedding_size", 64), ("llama", "num_encoder_layers", 2)],
)
def test_a_key_of_other_families_is_refused_and_they_are_named(family: str, key: str, value: object) -> None:
    fields = {name: {field.name for field in dataclasses.fields(FAMILIES.settings(name))} for name in FAMILIES}
    having = " or ".join(sorted(name for name, names in fields.items() if key in names))
    assert having
    words = f"model.{key} is a key of model.family={having}, but this run has model.family={family}"
    with pytest.raises(ConfigError, match=words):
        resolve({"model": {"family": family, key: value}})


def test_variants_of_a_family_are_named() -> None:
    with pytest.raises(ConfigError, match="v1.0, v1.1"):
        resolve({"model": {"family": "t5", "variant": "qwen2"}})


@pytest.mark.parametrize("family", ["bert", "t5", "albert"])
def test_a_stored_config_with_the_keys_of_all_families_is_read(family: str) -> None:
    """As runs stored it before families had keys of their own: 0 and "" were not set."""
    flat = dict(
        variant="",
        num_encoder_layers=0,
        embedding_size=0,
        num_kv_heads=0,
        head_size=0,
        vocab_size=0,
        norm="",
        mup_base_width=0,
    )
    stored = {name: content for name, content in to_dict(Config()).items() if name != "plugins"}
    found = resolve(migrated({**stored, "model": {"family": family, **flat}}))
    assert found.model == FAMILIES.make(family)


def test_model_types_have_one_family_each() -> None:
    assert sum(len(family.model_types) for _, family in FAMILIES.items()) == len(model_types())


@pytest.mark.parametrize("name", NAMES)
def test_config_json_describes_the_model(name: str) -> None:
    """The written file is read as the same shapes, and written again unchanged."""
    definition = define_model(tiny_config(name), 64)
    family = FAMILIES[name].stored_as(definition.arch)
    written = hf_config(definition, name)
    stored = {weight.names[0].removeprefix("@") for weight in weights_of(family, definition).values()}
    again = family.from_hf(written, stored)
    assert {key: written.get(key, value) for key, value in family.to_hf(again).items()} == family.to_hf(again)
    shapes = {path: leaf.shape for path, leaf in flatten(define(again, definition.head).shapes).items()}
    own = {path: leaf.shape for path, leaf in flatten(definition.shapes).items()}
    assert {path: shapes[path] for path in own if not path.endswith("positions")} == {
        path: shape for path, shape in own.items() if not path.endswith("positions")
    }
    assert all(path.endswith("/bias") for path in shapes.keys() - own.keys())  # which zeros mean


@pytest.mark.parametrize(
    "name", tiny.families(*LEARNS)
)  # files of all families that have goldens are compared by their tests
def test_every_parameter_of_every_class_has_a_name(name: str) -> None:
    definition = define_model(tiny_config(name), 64)
    family = FAMILIES[name].stored_as(definition.arch)
    arch = family.from_hf(hf_config(definition, name), set())
    for suffix, head in family.classes.items():
        stack = arch.encoder if suffix in family.encoder_classes else arch
        if stack is None or HEADS[head].stack not in ("", stack.kind) or (head == "causal_lm" and not stack.causal):
            continue
        weights = weights_of(family, define(stack, HeadSpec(head)))
        stored = [weight.of_layer(weight.names[0], 0) for weight in weights.values() if weight.parts == (1,)]
        assert len(set(stored)) == len(stored)


@pytest.mark.parametrize("name", tiny.families(*LEARNS))
def test_it_learns_is_saved_and_read_back(name: str, tmp_path: object) -> None:
    """A step down the gradient lowers the loss of a model with other than initial weights, whose files give the same outputs."""
    definition = define_model(tiny_config(name), 64, DEFAULT_HEADS[define_model(tiny_config(name), 64).arch.kind])
    params, inputs = tiny.random_params(definition, scale=0.1), rows()
    arch, head = definition.arch, definition.head.name
    if arch.encoder is not None:
        inputs["decoder_input_ids"] = shift_right(inputs["input_ids"], 3, 0)
    with_labels = inputs | {"labels": inputs["input_ids"]}

    def loss(params: object) -> jax.Array:
        return forward(definition.bind(params), head, with_labels)["loss"]

    before, slope = tiny.jit(jax.value_and_grad(loss))(params)
    moved = jax.tree.map(lambda x, g: x - 0.02 * g, params, slope)
    assert float(loss(moved)) < float(before)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slope))

    lm = LanguageModel(definition, params, name, {})
    lm.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.definition.head.name == head
    expected, found = (np.asarray(one(**inputs)["logits"]) for one in (lm, again))
    np.testing.assert_allclose(found, expected, atol=1e-5)


class OfTheirOwn(Family):
    """Windowed and full layers in turn, which no class of the Hugging Face format has."""

    def architecture(self, config: ModelConfig, vocab_size: int) -> Architecture:
        arch = from_config(config, vocab_size, causal=True, norm="pre")
        return dataclasses.replace(
            arch, layers=(dataclasses.replace(arch.layers[0], attention="window", window=3), *arch.layers)
        )


def test_a_family_without_the_other_format_is_saved_as_native(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES._found, "their_own", (OfTheirOwn(), None))
    definition = define_model(tiny_config("their_own"), 64)
    stored = describe(definition, "their_own", tokens={"eos_token_id": 3})  # as a run stores it
    assert stored["config"] == {"eos_token_id": 3}
    lm = LanguageModel(definition, tiny.random_params(definition), "their_own", stored["config"])
    lm.save_native(tmp_path)
    expected, found = (np.asarray(one(**rows())["logits"]) for one in (lm, from_pretrained(tmp_path)))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(PretrainedError, match="no models of family their_own. Save the model as native"):
        lm.save_pretrained(tmp_path / "other")


def test_a_native_model_of_a_plug_in_is_read_without_importing_it_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for names in ("_found", "_origins"):
        monkeypatch.setattr(FAMILIES, names, dict(getattr(FAMILIES, names)))
    (tmp_path / "their_family.py").write_text(
        "from lm_research.models.families import FAMILIES\nFAMILIES.register('their_family')(FAMILIES['gpt2'])\n"
    )

    def in_another_process(directory: pathlib.Path) -> LanguageModel:
        sys.modules.pop("their_family", None)
        FAMILIES._found.pop("their_family", None)
        return from_pretrained(directory)

    with monkeypatch.context() as with_path:
        with_path.syspath_prepend(tmp_path)
        import_plugins(["their_family"])
        definition = define_model(tiny_config("their_family"), 64)
        lm = LanguageModel(definition, tiny.random_params(definition), "their_family", {})
        lm.plugins = ("their_family",)
        lm.save_native(tmp_path / "native")
        again = in_another_process(tmp_path / "native")
        np.testing.assert_array_equal(again(**rows())["logits"], lm(**rows())["logits"])
        again.save_native(tmp_path / "copy")
        config = resolve({"data": {"max_length": 32}})
        init = InitCheckpoint(tmp_path / "copy", config.model, "causal_lm")
        assert apply_init_checkpoint(init, config).plugins == ("their_family",)
    with pytest.raises(PretrainedError, match=r"model.json: plugins names 'their_family', which cannot be imported"):
        in_another_process(tmp_path / "copy")


@pytest.mark.parametrize("changes", [dict(attention_norm=False, residual="post"), dict(attention="window")])
def test_an_invalid_architecture_is_reported(changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    family = OfTheirOwn()
    whole = family.architecture
    monkeypatch.setattr(
        OfTheirOwn, "architecture", lambda self, *given: whole(*given).with_layers(**{"window": 0, **changes})
    )
    monkeypatch.setitem(FAMILIES._found, "their_own", (family, None))
    with pytest.raises(ConfigError, match="family=their_own: a layer has"):
        define_model(tiny_config("their_own"), 64)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in LEARNS else pytest.mark.slow)
        for name in NAMES
        if {"causal_lm", "seq2seq_lm"} & {*FAMILIES[name].classes.values()}
    ],
)
def test_it_generates_the_likeliest_tokens(name: str) -> None:
    """Tokens written one at a time, from the cache, are those of whole rows, read without one."""
    definition = define_model(tiny_config(name), 64)
    if definition.arch.kind == "encoder":
        pytest.skip("a decoder only where its files say so")
    lm = LanguageModel(definition, tiny.random_params(definition, scale=0.3), name, {})
    source, start = rows()["input_ids"], {} if definition.arch.encoder is None else {"decoder_start_token_id": 3}
    written = np.asarray(lm.generate(input_ids=source, max_new_tokens=4, pad_token_id=0, **start))
    given = 1 if start else source.shape[1]
    inputs = {"input_ids": source, "decoder_input_ids": written[:, :-1]} if start else {"input_ids": written[:, :-1]}
    likeliest = np.asarray(lm(**inputs)["logits"]).argmax(-1)
    np.testing.assert_array_equal(written[:, given:], likeliest[:, given - 1 :])


@pytest.mark.parametrize(
    ("kind", "variant", "prefix"),
    [("llama", "llama", "transformer."), ("qwen2", "qwen2", "transformer."), ("mistral", "llama", "model.")],
)
def test_names_of_relatives_that_answer_questions(kind: str, variant: str, prefix: str, tmp_path: pathlib.Path) -> None:
    """`base_model_prefix` of transformers 5.24's KINDForQuestionAnswering; a Mistral without a window has the architecture of a Llama."""
    definition = define_model(FAMILIES.make("llama", variant=variant, **SHAPE), 64, "span")
    config = hf_config(define_model(FAMILIES.make("llama", variant=variant, **SHAPE), 64), "llama")
    config |= {"model_type": kind, "sliding_window": None}
    LanguageModel(definition, tiny.random_params(definition), "llama", config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name.partition(".")[0] + "." for name in tensors} == {prefix, "qa_outputs."}
    assert from_pretrained(tmp_path).report.lines() == []

    adapted = adapt(definition, LoraConfig(rank=2, target_modules="attention/query/"))
    write_adapter(tmp_path / "adapter", adapted, "llama", tiny.random_params(adapted), str(tmp_path), kind)
    names = {
        f"base_model.model.{prefix}layers.{n}.self_attn.q_proj.lora_{part}.weight" for n in (0, 1) for part in "AB"
    }
    assert set(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == names

    del tensors[f"{prefix}norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(PretrainedError, match=f"no tensor '{re.escape(prefix)}norm.weight'"):
        from_pretrained(tmp_path)

"""Every family against transformers: outputs, losses, training curves, and files round trip.

The expected numbers are goldens/*.npz, made by goldens/make_goldens.py. Outputs at padding mean nothing and are
not compared; they may differ where a query sees no key at all.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import optax
import pytest

import lm_research
from helpers import golden_models, tiny
from helpers.golden_models import Golden, load_golden
from lm_research.interop.tensor_files import open_tensors
from lm_research.models.forward import forward
from lm_research.models.transformer import Transformer
from lm_research.pretrained import LanguageModel

TOLERANCE = 1e-4


# The default run has one model of each kind of block and each kind of head; -m slow has all.
TEXTS = "gpt2 t5 gemma3 mixtral t5gemma2 m2m_100".split()
LOSSES = "bert gpt2 t5 bart mixtral deberta_v2 modernbert t5gemma2 roberta_question".split()
HEADS = ("bert", "gpt2", "t5", "bart")
# What these add to a model with the same blocks and head is another default test's, or a relative's of the same class.
SLOW = """albert_groups_unused albert_masked bart_decoder_untied bart_generation_scaled bart_generation_untied bart_model
bert_decoder_masked bert_decoder_model bert_decoder_sequence bert_decoder_untied bert_masked bert_masked_untied
bert_model_plain bert_next camembert_masked convbert_choice electra_decoder_untied electra_generator falcon_gaps
gpt2_causal_relu gpt2_causal_types gpt2_causal_untied llama_causal_linear llama_causal_linear_old llama_causal_llama3
llama_causal_llama3_old llama_causal_tied marian_decoder marian_translation_untied marian_translation_untied_shared
mbart_decoder mbart_generation_start mistral_causal_full pair_albert_bart pair_bert_bert_untied pair_deberta_v2_roformer
pair_distilbert_mbart pair_electra_electra pair_roberta_roberta pair_xlm_roberta_roberta qwen2_causal_sliding roberta_choice
roberta_decoder roberta_masked_untied t5_generation_gated_gelu t5_generation_gated_silu t5_generation_gated_tied
t5_generation_long t5_model xlm_roberta_decoder xlm_roberta_masked""".split()


def cases(what: str) -> list[Any]:
    def is_slow(path: pathlib.Path) -> bool:
        name = path.stem
        if path.parent.name == "slow" or name in SLOW:
            return True
        if what != "outputs":
            return name.removesuffix(f"_{what}") not in {"texts": TEXTS, "losses": LOSSES}[what]
        family, _, head = name.rpartition("_")
        return head in ("model", "question", "sequence", "token") and family not in HEADS

    paths = golden_models.golden_paths(what)
    return [pytest.param(p, id=p.stem, marks=pytest.mark.slow if is_slow(p) else ()) for p in paths]


def read(golden: Golden, directory: pathlib.Path) -> LanguageModel:
    golden_models.write_checkpoint(directory, golden)
    return lm_research.from_pretrained(directory)


def run(lm: LanguageModel, inputs: dict[str, np.ndarray], capture: bool) -> dict[str, Any]:
    """`lm(**inputs)` through a program that compiles faster."""
    whole = lm._forward.__wrapped__
    wrapped = tiny.jit(lambda params, given: whole(params, given, capture))
    lm._forward = lambda params, given, _: wrapped(params, given)
    return lm(**inputs, output_hidden_states=capture, output_attentions=capture)


def real_positions(golden: Golden, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """1 where an output of this shape belongs to a real token, else 0; broadcasts against it."""
    of_encoder = name.startswith("encoder_") or not any(key.startswith("decoder_") for key in golden.outputs)
    mask = golden.inputs.get("attention_mask" if of_encoder else "decoder_attention_mask")
    per_layer = name.endswith(("hidden_states", "attentions"))
    axes = shape[1:] if per_layer else shape
    if mask is None or mask.ndim != 2 or name in ("logits",) and mask.shape != axes[:2]:
        return np.ones(1)
    if name.endswith("attentions"):
        return mask[None, :, None, :, None] if mask.shape[1] == shape[3] else np.ones(1)
    if mask.shape != axes[:2]:
        return np.ones(1)
    mask = mask.reshape(mask.shape + (1,) * (len(axes) - 2))
    return mask[None] if per_layer else mask


@pytest.mark.parametrize("path", cases("outputs"))
def test_outputs_losses_and_files_match_transformers(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    golden = load_golden(path)
    lm = read(golden, tmp_path / "theirs")
    assert lm.report.lines() == []  # every tensor was used, none is missing
    capture = any(name.endswith(("hidden_states", "attentions")) for name in golden.outputs)
    got = run(lm, golden.inputs, capture)
    for name, expected in golden.outputs.items():
        value = np.stack(got[name]) if isinstance(got[name], tuple) else np.asarray(got[name])
        assert value.shape == expected.shape, name
        if name == "loss":
            np.testing.assert_allclose(value, expected, rtol=1e-5)
        elif value.size:
            assert (np.abs(value - expected) * real_positions(golden, name, value.shape)).max() < TOLERANCE, name

    lm.save_pretrained(tmp_path / "ours")
    theirs, ours = open_tensors(tmp_path / "theirs"), open_tensors(tmp_path / "ours")
    assert sorted(ours.names) == sorted(theirs.names)
    for name in theirs.names:
        assert ours.read(name).tobytes() == theirs.read(name).tobytes() and ours.shape(name) == theirs.shape(name), name
    assert lm_research.from_pretrained(tmp_path / "ours").config == lm.config


@pytest.mark.parametrize("path", cases("losses"))
def test_ten_steps_of_adamw_match_transformers_losses(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    golden = load_golden(path)
    lm = read(golden, tmp_path)
    settings = golden.optimizer
    rate, decay = settings["learning_rate"], settings["weight_decay"]
    optimizer = optax.adamw(rate, settings["beta1"], settings["beta2"], settings["epsilon"], weight_decay=decay)

    def loss_of(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return forward(lm.definition.bind(params), lm.forward_head, batch)["loss"]

    @tiny.jit
    def step(params: Any, state: Any, batch: dict[str, jax.Array]) -> tuple:
        loss, gradient = jax.value_and_grad(loss_of)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return loss, optax.apply_updates(params, updates), state

    params, state = lm.params, optimizer.init(lm.params)
    losses = []
    for number in range(len(golden.outputs["losses"])):
        batch = {name: value[number % len(value)] for name, value in golden.inputs.items()}
        loss, params, state = step(params, state, lm._checks(batch))
        losses.append(float(loss))
    np.testing.assert_allclose(losses, golden.outputs["losses"], atol=1e-4)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("path", cases("texts"))
def test_generated_tokens_match_transformers(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Chosen greedily and by 3 beams, after prompts with padding."""
    golden = load_golden(path)
    lm = read(golden, tmp_path)
    longest = max(value.shape[1] for value in golden.outputs.values())
    given = (
        1 if "decoder_input_ids" in golden.inputs or lm.definition.arch.encoder else golden.inputs["input_ids"].shape[1]
    )
    for name, beams in (("greedy", 1), ("beams", 3)):
        got = lm.generate(**golden.inputs, max_new_tokens=longest - given, num_beams=beams, do_sample=False)
        np.testing.assert_array_equal(np.asarray(got), golden.outputs[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True])
def test_a_loss_of_experts_takes_one_trace(deep: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the values of transformers, also where hidden states and attentions are returned."""
    golden, traces, call = load_golden(golden_models.golden_path("mixtral_router")), [], Transformer.__call__
    lm = read(golden, tmp_path)
    monkeypatch.setattr(Transformer, "__call__", lambda *given, **named: traces.append(1) or call(*given, **named))
    got = lm(**golden.inputs, output_hidden_states=deep, output_attentions=deep)
    assert len(traces) == 1
    for name in ("loss", "aux_loss"):
        np.testing.assert_allclose(got[name], golden.outputs[name], rtol=1e-5)

"""The schema of a run, and every shipped config: resolved, with the sizes and settings that the papers print."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import jax
import pytest

from lm_research.config import (
    Config,
    ModelConfig,
    check_key,
    default_config,
    describe,
    dumps,
    loading,
    profile_range,
    replace,
    resolve,
    walk,
)
from lm_research.config.registries import VARIANTS
from lm_research.errors import ConfigError
from lm_research.objectives import define

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
FINE_TUNING = sorted(f"finetune/{path.name}" for path in (ROOT / "configs" / "finetune").glob("*.py"))
GOLDEN = ROOT / "tests" / "goldens" / "schema.txt"


def shipped(spec: str) -> Config:
    return resolve(loading.load(str(ROOT / "configs" / spec)))


@pytest.mark.parametrize("name", [*SHIPPED, *FINE_TUNING, "quickstart.py:bert", "quickstart.py:gpt"])
def test_shipped_config_resolves_to_changed_defaults(name: str) -> None:
    config = shipped(name)
    assert config != Config()
    if config.tokenizer.path == "" and config.model.vocab_size:
        assert config.model.vocab_size >= config.tokenizer.vocab_size


@pytest.mark.parametrize("name", [*SHIPPED, *FINE_TUNING])
def test_docstring_gives_the_command_and_the_expected_result(name: str) -> None:
    text = (ROOT / "configs" / name).read_text(encoding="utf-8").split('"""')[1]
    assert f"python -m lm_research.train --config=configs/{name} --workdir=runs/" in text
    for word in ("Hardware ", "Time ", "Result "):
        assert word in text


def bert_parameters(model: ModelConfig) -> int:
    """Weights and biases of a BERT encoder with pooler, without heads, counted from Devlin et al. 2018."""
    d, f, v = model.hidden_size, model.intermediate_size, model.vocab_size
    embeddings = (v + model.max_length + 2) * d + 2 * d  # tokens, positions, two types, layer norm
    block = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    return embeddings + model.num_layers * block + d * d + d


def gpt2_parameters(model: ModelConfig) -> int:
    """Weights and biases of GPT-2 with its tied output, counted from Radford et al. 2019."""
    d, f, v = model.hidden_size, model.intermediate_size, model.vocab_size
    block = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    return (v + model.max_length) * d + model.num_layers * block + 2 * d


# Layers, width, heads, and the parameter count of the released checkpoints (BertModel and GPT2LMHeadModel of each).
PUBLISHED = {
    "bert_tiny.py": (2, 128, 2, 4_385_920),
    "bert_mini.py": (4, 256, 4, 11_170_560),
    "bert_small.py": (4, 512, 8, 28_763_648),
    "bert_base.py": (12, 768, 12, 109_482_240),
    "bert_large.py": (24, 1024, 16, 335_141_888),
    "gpt2_small.py": (12, 768, 12, 124_439_808),
    "gpt2_medium.py": (24, 1024, 16, 354_823_168),
    "gpt2_large.py": (36, 1280, 20, 774_030_080),
    "gpt2_xl.py": (48, 1600, 25, 1_557_611_200),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    model = shipped(name).model
    layers, width, heads, parameters = PUBLISHED[name]
    assert (model.num_layers, model.hidden_size, model.num_heads) == (layers, width, heads)
    count = bert_parameters if name.startswith("bert") else gpt2_parameters
    assert count(model) == parameters


# Parameters of the whole models with their heads: of the released checkpoints (T5ForConditionalGeneration,
# BartForConditionalGeneration with its constant bias of 50,265, RobertaForMaskedLM, XLMRobertaForMaskedLM,
# ElectraForPreTraining, AlbertForPreTraining, ModernBertForMaskedLM), and counted for the last six, of which no checkpoint has this shape.
WHOLE = {
    "t5_small.py": 76_961_152,
    "t5_base.py": 247_577_856,
    "bart_base.py": 139_420_416 + 50_265,
    "roberta_base.py": 124_697_433,
    "xlm_roberta_base.py": 278_295_186,
    "electra_small.py": 13_549_057,
    "albert_base.py": 11_813_810,
    "modernbert_base.py": 149_655_232,
    # GPT-2 small with 1,024 more positions.
    "gpt3_small.py": 124_439_808 + 1024 * 768,
    # Two tables, 12 blocks of attention, gated feed-forward and two norms, and a last norm.
    "llama.py": 2 * 32_000 * 768 + 12 * (4 * 768 * 768 + 3 * 768 * 2048 + 2 * 768) + 768,
    # One table; 18 attentions without biases, 12 feed-forward layers with them, and a norm after each of the 30 branches.
    "transformer_base.py": 37_000 * 512 + 18 * 4 * 512 * 512 + 12 * (2 * 512 * 2048 + 2048 + 512) + 30 * 2 * 512,
    # The same with 4 + 4 layers: 12 attentions, 8 feed-forward layers, 20 branches.
    "transformer_multi30k.py": 10_000 * 128 + 12 * 4 * 128 * 128 + 8 * (2 * 128 * 256 + 256 + 128) + 20 * 2 * 128,
    # GPT-2's two tables, blocks and last norm, for 256 bytes and 5 special tokens, and for WikiText-2's words.
    "tinyshakespeare.py": (261 + 64) * 128 + 4 * (12 * 128 * 128 + 13 * 128) + 2 * 128,
    "wikitext2.py": (33_278 + 128) * 256 + 4 * (12 * 256 * 256 + 13 * 256) + 2 * 256,
}


@pytest.mark.parametrize("name", WHOLE)
def test_published_sizes_of_whole_models(name: str) -> None:
    config = shipped(name)
    definition = define(config, config.model.vocab_size)  # which also checks that objective and model go together
    shapes = {part: tree for part, tree in definition.shapes.items() if part != "generator"}
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == WHOLE[name]


def test_every_real_size_is_tested() -> None:
    assert set(PUBLISHED) | set(WHOLE) == set(SHIPPED) - {"quickstart.py", "sentence_classifier.py"}


def test_encoder_decoder_recipes_are_those_of_the_papers() -> None:
    t5, bart = shipped("t5_small.py"), shipped("bart_base.py")
    assert (t5.objective.name, t5.objective.mask_rate, t5.objective.mean_span_length) == ("span_corruption", 0.15, 3.0)
    assert (t5.train.batch_size, t5.data.max_length, t5.train.num_steps) == (128, 512, 2**19)  # Raffel et al., 3.1
    assert t5.tokenizer.sentinels == 100
    assert (bart.objective.name, bart.objective.text_infilling_prob, bart.objective.permute_sentence_prob) == (
        "denoising",
        0.3,
        1.0,
    )


def test_encoder_recipes_are_those_of_the_papers() -> None:
    roberta, electra, albert = (shipped(f"{name}.py") for name in ("roberta_base", "electra_small", "albert_base"))
    assert (roberta.optimizer.beta2, roberta.optimizer.epsilon) == (0.98, 1e-6)  # Liu et al. 2019, table 9
    assert (roberta.optimizer.learning_rate, roberta.schedule.warmup_steps) == (6e-4, 24_000)
    assert roberta.objective.sentence_pair == "none" and roberta.objective.dupe_factor == 0 and roberta.data.packing
    assert (electra.objective.generator_size, electra.objective.discriminator_weight) == (0.25, 50.0)  # table 6
    assert (electra.train.batch_size, electra.data.max_length, electra.optimizer.learning_rate) == (128, 128, 5e-4)
    assert (albert.objective.sentence_pair, albert.objective.masking, albert.objective.max_span_length) == (
        "sentence_order",
        "ngram",
        3,
    )
    assert albert.train.batch_size * albert.train.num_steps == 4096 * 125_000  # Lan et al. 2019, section 4.1
    assert shipped("xlm_roberta_base.py").data.mixture_alpha == 0.3  # Conneau et al. 2019, section 3


@pytest.mark.parametrize("size", ["tiny", "mini", "small", "base", "large"])
def test_bert_recipe_is_that_of_the_paper(size: str) -> None:
    config = shipped(f"bert_{size}.py")  # Devlin et al. 2018, section 3.1 and appendix A.2
    assert (config.objective.name, config.objective.mask_rate, config.objective.sentence_pair) == (
        "masked_lm",
        0.15,
        "next_sentence",
    )
    assert (config.train.batch_size, config.data.max_length, config.train.num_steps) == (256, 512, 1_000_000)
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.learning_rate, optimizer.beta1, optimizer.beta2) == (1e-4, 0.9, 0.999)
    assert (optimizer.weight_decay, optimizer.epsilon) == (0.01, 1e-6)
    assert (schedule.name, schedule.warmup_steps, schedule.end_ratio) == ("linear", 10_000, 0.0)
    assert (config.model.dropout_rate, config.model.attention_dropout_rate) == (0.1, 0.1)


@pytest.mark.parametrize(("size", "rate"), [("small", 6e-4), ("medium", 3e-4), ("large", 2.5e-4), ("xl", 2e-4)])
def test_gpt2_recipe_is_that_of_gpt3_at_the_nearest_size(size: str, rate: float) -> None:
    config = shipped(f"gpt2_{size}.py")  # Brown et al. 2020, table 2.1 and appendix B
    assert (config.objective.name, config.tokenizer.type) == ("causal_lm", "bpe")
    assert config.optimizer.learning_rate == rate
    assert (config.optimizer.beta2, config.optimizer.weight_decay, config.optimizer.clip_norm) == (0.95, 0.1, 1.0)
    assert (config.schedule.name, config.schedule.end_ratio) == ("cosine", 0.1)
    tokens = config.train.batch_size * config.data.max_length
    assert tokens == 512 * 1024
    assert config.schedule.warmup_steps == round(375e6 / tokens)


def test_quickstart_has_a_bert_and_a_gpt_of_one_size() -> None:
    bert, gpt = shipped("quickstart.py"), shipped("quickstart.py:gpt")
    assert bert == shipped("quickstart.py:bert")
    assert bert.objective.name == "masked_lm" and bert.objective.sentence_pair == "next_sentence"
    assert gpt.objective.name == "causal_lm"
    assert bert.model.family != gpt.model.family


def test_schema_is_the_one_that_was_reviewed() -> None:
    """A default, choice or meaning never changes silently.

    Where it should, rewrite the golden: python -m lm_research.train --help_config > tests/goldens/schema.txt
    """
    assert describe() + "\n" == GOLDEN.read_text(encoding="utf-8")


def test_describe_lists_every_key_with_default_and_meaning() -> None:
    text = describe()
    variants = [key for registry in VARIANTS.values() for name in registry for key in registry.keys(name).values()]
    for key in (*walk(), *variants):
        assert f"  {key.name}  (" in text and f"default {key.default!r})" in text
        assert key.meaning in text and key.meaning.endswith(".")
    for registry in VARIANTS.values():
        for name in registry:
            assert (
                f"\n  {registry.section}.{registry.chooser}={name}  {inspect.getdoc(registry.get(name)).split('. ')[0][:40]}"
                in text
            )


def test_defaults_obey_their_own_rules() -> None:
    assert resolve({}) == Config() == resolve(default_config())


def test_json_round_trip() -> None:
    config = replace(Config(), train=dict(num_steps=7), optimizer=dict(learning_rate=3e-05), seed=4)
    assert resolve(json.loads(dumps(config))) == config
    assert config.train.num_steps == 7 and config.seed == 4


def test_the_result_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().train.num_steps = 3  # type: ignore[misc]


def test_an_integer_is_a_float_but_not_the_other_way_round() -> None:
    assert resolve({"optimizer": {"clip_norm": 1}}).optimizer.clip_norm == 1.0
    with pytest.raises(ConfigError, match="train.num_steps must be of type int"):
        resolve({"train": {"num_steps": 10.0}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": True}, "seed must be of type int"),
        ({"model": {"scan_layers": 1}}, "scan_layers must be of type bool"),
        ({"data": {"source": None}}, "source must be of type str"),
        ({"optimizer": {"learning_rate": float("nan")}}, "finite"),
        ({"train": {"batch_size": 0}}, "at least 1"),
        # Bounds of int32 counters, float32 arithmetic, and PATH_MAX; no machine has a tenth of the others.
        ({"train": {"num_steps": 2**40}}, "from 1 to 2147483646"),
        ({"train": {"num_steps": 10**5000}}, "2147483646"),
        ({"model": {"hidden_size": 2**40}}, "hidden_size"),
        ({"model": {"num_layers": 10**6}}, "num_layers"),
        ({"data": {"num_workers": 10**5}}, "num_workers"),
        ({"train": {"batch_size": 2**22}, "data": {"max_length": 512}}, "2,147,483,648 tokens per step"),
        ({"eval": {"every_steps": 2**31}}, "every_steps"),
        ({"optimizer": {"learning_rate": 10**400}}, "learning_rate"),
        ({"optimizer": {"weight_decay": 1e300}}, "weight_decay"),
        ({"task": {"name": "embedding", "value_one": -1e31}}, "value_one"),
        ({"task": {"name": "question_answering", "null_score_diff_threshold": float("inf")}}, "finite"),
        ({"train": {"budget": "1e400h"}}, "budget"),
        ({"train": {"budget": "²h"}}, "budget"),
        ({"profile": {"steps": "²-³"}}, "FIRST-LAST"),
        ({"profile": {"steps": f"1-{'9' * 5000}"}}, "FIRST-LAST"),
        ({"tokenizer": {"path": "a\0"}}, "NUL"),
        ({"task": {"name": "embedding", "prompt": "a\udc80"}}, "character 2 is not valid in UTF-8"),
        ({"task": {"name": "tagging", "labels": "a," * 10**6}}, "2,000,000 characters"),
        ({"data": {"source": "~nobody_of_this_name/x"}}, "home directory"),
        ({"train": {"init_from": "x" * 256}}, "255 bytes"),
        ({"model": {"dropout_rate": 1.0}}, "from 0.0 to 0.99"),
        ({"schedule": {"name": "cosin"}}, "Did you mean 'cosine'"),
        ({"train": {"num_stepz": 1}}, "Did you mean 'num_steps'"),
        ({"num_steps": 1}, "Did you mean 'train.num_steps'"),
        ({"train": 3}, "is a section"),
        ({"model": {"hidden_size": 100}}, "not a multiple of model.num_heads"),
        ({"data": {"max_length": 1024}}, "config.model.max_length=1024"),
        ({"train": {"accumulation_steps": 5}}, "multiple of 5"),
        ({"schedule": {"warmup_steps": 5, "warmup_ratio": 0.1}}, "both set"),
        ({"schedule": {"warmup_steps": 2000}}, "longer than train.num_steps"),
        ({"model": {"vocab_size": 100}}, "model.vocab_size=0"),
        ({"profile": {"steps": "9-3"}}, "FIRST-LAST"),
    ],
)
def test_invalid_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.").replace("(", r"\(")):
        resolve(values)


def test_check_key_accepts_every_key() -> None:
    for key in walk():
        check_key(key.name)


def test_profile_range() -> None:
    assert profile_range(Config()) is None
    assert profile_range(replace(Config(), profile=dict(steps="10-13"))) == (10, 13)

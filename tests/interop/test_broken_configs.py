"""Files of model directories with impossible values: each is refused in a paragraph that names file, key and value, before any array is allocated.

What is expected follows from what a key means: sizes are whole numbers from 1, rates are between 0 and 1, and so on. mutate_configs.py does
the same with every key and value.
"""

from __future__ import annotations

import json
import os
import pathlib
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from mutate_configs import mutated

from helpers import golden_models
from lm_research.decoding.generation_config import load_defaults
from lm_research.errors import PretrainedError, UserError
from lm_research.interop import flax_file, huggingface, peft, sentence_transformers
from lm_research.interop.model_directories import inspect
from lm_research.models.architecture import Architecture
from lm_research.models.limits import invalid_reason, num_parameters
from lm_research.pretrained import LanguageModel


def written(directory: pathlib.Path, golden: str, changes: dict[str, str]) -> pathlib.Path:
    """The checkpoint of a golden, with other values (as JSON) for keys: "decoder.n_embd" is in an object."""
    found = golden_models.load_golden(golden_models.FOLDER / f"{golden}.npz")
    golden_models.write_checkpoint(directory, found)
    text = found.config
    for key, value in changes.items():
        text = mutated(text, tuple(key.split(".")), value)
    (directory / "config.json").write_text(text)
    return directory


BROKEN = [
    ("bert_sequence", "model_type", "[1]", "model_type is .1., which is not supported"),
    (
        "bert_sequence",
        "model_type",
        '"prophetnet"',
        "not supported: its decoder predicts several tokens .* such as bart",
    ),
    ("bert_sequence", "model_type", "null", "model_type is None, which is not supported"),
    ("bert_sequence", "architectures", '"BertModel"', "architectures is 'BertModel': expected array"),
    ("bert_sequence", "architectures", "[1]", "architectures is .1.: expected str"),
    ("bert_sequence", "id2label", '"x"', "id2label is 'x': expected object"),
    (
        "bert_sequence",
        "id2label",
        '{"0": "a", "5": "b", "1": "c"}',
        "keys of id2label are .'0', '5', '1'., but 3 labels",
    ),
    ("bert_sequence", "id2label", '{"0": "a", "00": "b", "1": "c"}', "keys of id2label"),
    ("bert_sequence", "id2label", '{"-1": "a", "x": "b", "1": "c"}', "keys of id2label"),
    ("bert_sequence", "problem_type", "3", "problem_type is 3: expected str"),
    ("bert_sequence", "pad_token_id", "1e400", "pad_token_id is inf: expected int"),
    ("bert_sequence", "hidden_dropout_prob", "NaN", "hidden_dropout_prob is nan"),
    ("bert_sequence", "hidden_dropout_prob", "1.5", "hidden_dropout_prob is 1.5: expected float <= 1"),
    ("bert_sequence", "layer_norm_eps", "-1e-5", "layer_norm_eps is -1e-05: expected float >= 0"),
    ("bert_sequence", "hidden_act", "[]", "hidden_act is .., an activation"),
    ("bert_sequence", "hidden_size", "true", "hidden_size is True: expected int, got bool"),
    ("bert_sequence", "num_hidden_layers", str(2**40), "num_hidden_layers is 1099511627776: expected int <= 10000"),
    ("bert_sequence", "num_hidden_layers", "0", "num_hidden_layers is 0: expected int >= 1"),
    ("bert_sequence", "num_attention_heads", "0", "num_attention_heads is 0"),
    ("bert_sequence", "num_attention_heads", "4", "hidden_size=21 and num_attention_heads=4 are incompatible"),
    ("bert_sequence", "hidden_size", str(3 * 2**29), "the model would have .* parameters .*hidden_size=1610612736"),
    ("bert_sequence", "vocab_size", "2147483648", "vocab_size is 2147483648: expected int <= 2147483647"),
    ("bert_sequence", "intermediate_size", "9" * 400, "intermediate_size is 9+[.]+9+: expected int"),
    (
        "bert_sequence",
        "tie_word_embeddings",
        '"' + "y" * 10_000 + '"',
        "tie_word_embeddings is 'y+[.]+y+': expected bool",
    ),
    ("bert_sequence", "quantization_config", "[1]", "quantization_config is .1.: expected object"),
    ("gpt2_causal", "n_inner", "-4", "n_inner is -4: expected int >= 1"),
    ("gpt2_causal", "scale_attn_weights", '"no"', "scale_attn_weights is 'no': expected bool"),
    ("gpt2_causal", "n_layer", "0", "n_layer is 0"),
    ("roberta_masked", "max_position_embeddings", "1", "max_position_embeddings is 1"),
    ("roberta_masked", "pad_token_id", "1000000", "pad_token_id is 1000000 .* positions start at"),
    ("llama_causal", "num_key_value_heads", "4", "num_attention_heads=6 and num_key_value_heads=4 are incompatible"),
    ("llama_causal", "num_key_value_heads", "0", "num_key_value_heads is 0"),
    ("llama_causal", "head_dim", "3", "heads are 3 wide .*head_dim=3.* rotary positions rotate pairs"),
    ("llama_causal", "rope_parameters", "[1]", "rope_parameters is .1.: expected object"),
    ("llama_causal", "rope_parameters", '{"rope_type": ["x"]}', "rope_type is .'x'.: expected str"),
    ("llama_causal", "rope_parameters", '{"rope_type": "linear"}', "rotary scaling of type linear requires factor"),
    ("llama_causal", "rope_parameters", '{"rope_type": "linear", "factor": 0}', "factor is 0: expected float"),
    ("llama_causal", "rope_parameters", '{"full_attention": {"rope_type": "default"}}', "which is not supported"),
    ("llama_causal", "rope_parameters", '{"rope_theta": "x"}', "rope_theta is 'x': expected float"),
    ("olmo3_causal", "rope_parameters", '{"full_attention": 3}', "full_attention is 3, but it must be an object"),
    ("qwen2_causal", "layer_types", '"x"', "layer_types is 'x': expected array"),
    ("mistral_causal", "sliding_window", "0.5", "sliding_window is 0.5: expected int"),
    ("t5_generation", "feed_forward_proj", "[]", "feed_forward_proj is ..: expected str"),
    ("t5_generation", "num_layers", "0", "num_layers is 0"),
    ("t5_generation", "num_decoder_layers", "true", "num_decoder_layers is True"),
    ("t5_generation", "relative_attention_num_buckets", "2", "relative_attention_num_buckets is 2: expected int >= 4"),
    ("t5_generation", "relative_attention_max_distance", "1", "are incompatible: half of the buckets"),
    ("bart_generation", "scale_embedding", "[]", "scale_embedding is ..: expected bool"),
    ("bart_generation", "encoder_layers", "NaN", "encoder_layers is nan"),
    ("albert_masked", "inner_group_num", str(2**31), "inner_group_num is 2147483648"),
    ("albert_masked", "inner_group_num", "10000", "num_hidden_layers is .*: expected int <= 10000"),
    ("pair_bert_gpt2", "decoder", "[]", "model_type of the decoder is None"),
    ("pair_bert_gpt2", "encoder.hidden_size", '"x"', "encoder: hidden_size is 'x': expected int"),
    ("pair_bert_gpt2", "decoder.bos_token_id", "{}", "decoder: bos_token_id is {}: expected int"),
]


@pytest.mark.parametrize(("golden", "key", "value", "message"), BROKEN)
def test_a_wrong_value_is_refused_by_name(
    golden: str, key: str, value: str, message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(PretrainedError, match=message) as caught:
        inspect(written(tmp_path, golden, {key: value}), None)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "config.json")) and len(said) < 700 and "\n" not in said


@pytest.mark.parametrize(
    ("golden", "changes"),
    [
        (
            "llama_causal",
            {"attention_bias": "null", "mlp_bias": "null", "rope_scaling": "null", "sliding_window": "null"},
        ),
        ("gpt2_causal", {"scale_attn_weights": "null", "pad_token_id": "null"}),
        ("t5_generation", {"scale_decoder_outputs": "null", "eos_token_id": "null", "layer_norm_epsilon": "null"}),
        ("bart_generation", {"tie_word_embeddings": "null", "decoder": "null"}),
        (
            "bert_sequence",
            {"num_labels": "null", "is_decoder": "null", "problem_type": "null", "quantization_config": "null"},
        ),
    ],
)
def test_null_equals_an_absent_key(golden: str, changes: dict[str, str], tmp_path: pathlib.Path) -> None:
    """The configs of these goldens have the values that transformers uses where a file omits the keys."""
    before = inspect(written(tmp_path / "a", golden, {}), None).definition
    after = inspect(written(tmp_path / "b", golden, changes), None).definition
    assert (before.arch, before.head) == (after.arch, after.head)


def test_labels_may_contain_dots_and_keys_may_be_anything(tmp_path: pathlib.Path) -> None:
    config = json.loads((written(tmp_path, "bert_sequence", {}) / "config.json").read_text())
    config |= {"id2label": {"0": "U.S.", "1": "b", "2": "c"}, "label2id": {"U.S.": 0}, "x.y": 1, "lists": [{"a": 1}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = inspect(tmp_path, None)
    lm = LanguageModel(found.definition, {}, found.family, found.config)
    assert lm.config.id2label["0"] == "U.S." and lm.config.to_dict()["lists"] == [(("a", 1),)]


@pytest.mark.parametrize("labels", [0, -1, 2**40, True, "x", 2.0])
def test_requested_numbers_of_labels_have_bounds(labels: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(PretrainedError, match="num_labels is .*a whole number from 1 to 1048576"):
        inspect(tmp_path, "classification", labels)


def test_parameter_counts_match_arithmetic() -> None:
    """2 x 12 x 2^24 x (2^31 - 1) and 4 x (12 x 2^24)^2 are 1.03 x 10^18. GPT-2 small: 50,257 and 1,024 rows of 768, and 12 blocks of 12 x 768^2: 124,318,464 = 39,383,808 + 84,934,656."""
    sizes = dict(
        vocab_size=50257, hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072, max_length=1024
    )
    arch = Architecture(causal=True, **sizes)
    assert num_parameters(arch) == 124_318_464 and invalid_reason(arch) == ""
    assert "dtype is 'int8'" in invalid_reason(arch.replace(dtype="int8")) and "init_std is -1.0" in invalid_reason(
        arch.replace(init_std=-1.0)
    )
    assert "activation is 'none'" in invalid_reason(arch.replace(activation="none"))
    assert "the model would have 1.0e+18 parameters" in invalid_reason(
        arch.replace(hidden_size=12 * 2**24, intermediate_size=2**31 - 1, num_layers=1)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"temperature": "x"}', "temperature='x', which has the wrong type: it must be a number"),
        ('{"max_new_tokens": [1]}', "max_new_tokens=.1., which has the wrong type"),
        ('{"eos_token_id": {"a": 1}}', "eos_token_id="),
        ('{"top_p": NaN}', "top_p=nan"),
        ("[1]", "expected object"),
        ("[" * 100_000, "nested more than"),
    ],
)
def test_generation_config(content: str, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(PretrainedError, match=message) as caught:
        load_defaults(tmp_path)
    assert str(tmp_path / "generation_config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": True}, "lora_alpha is True: expected float"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"peft_type": [1]}, "peft_type is .1.: expected str"),
        ({"alpha_pattern": {"a": "x"}}, "alpha_pattern is .*expected float"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "may take years"),
        ({"alpha_pattern": {".*.*.*x": 1}}, "may take years"),
        ({"alpha_pattern": {"[": 1}}, "is not a regular expression"),
        ({"modules_to_save": "score"}, "modules_to_save is 'score': expected array"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3: expected str"),
        ({"use_dora": {"a": 1}}, "use_dora is {'a': 1}, which is not supported"),
    ],
)
def test_adapter_config(changes: dict[str, Any], message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / peft.CONFIG).write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8, **changes}))
    with pytest.raises(PretrainedError, match=message):
        peft.read_config(tmp_path)


@pytest.mark.parametrize("shapes", [((0, 32), (32, 0)), ((4,), (32, 4)), ((1, 4, 32), (32, 4))])
def test_adapters_that_are_not_matrices(shapes: tuple, tmp_path: pathlib.Path) -> None:
    base = written(tmp_path / "base", "bert_sequence", {})
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / peft.CONFIG).write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8}))
    names = [f"{peft.PREFIX}bert.encoder.layer.0.attention.self.query.lora_{part}.weight" for part in "AB"]
    arrays = {name: np.zeros(shape, np.float32) for name, shape in zip(names, shapes, strict=True)}
    safetensors.numpy.save_file(arrays, tmp_path / "adapter" / peft.WEIGHTS)
    with pytest.raises(PretrainedError, match="are not matrices of numbers"):
        inspect(base, None, adapter=tmp_path / "adapter")


POOLING = {"type": "sentence_transformers.models.Pooling"}


@pytest.mark.parametrize("path", ["../other", "/etc", "link", "1_Pooling", "x\0y", "a" * 300])
def test_modules_stay_in_their_directory(path: str, tmp_path: pathlib.Path) -> None:
    """`link` points to a directory next to the model's, 1_Pooling/config.json to a file in it."""
    model, other = tmp_path / "model", tmp_path / "other"
    for folder in (model / "1_Pooling", other):
        folder.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    (model / "link").symlink_to(other)
    (model / "1_Pooling" / "config.json").symlink_to(other / "config.json")
    (model / "modules.json").write_text(json.dumps([POOLING | {"path": path}]))
    with pytest.raises(PretrainedError, match="modules.json and the files that it lists cannot be read"):
        sentence_transformers.load(model)


def test_snapshots_of_the_hub_are_links_to_blobs(tmp_path: pathlib.Path) -> None:
    """models--NAME/snapshots/COMMIT/FILE is a link to models--NAME/blobs/DIGEST."""
    snapshot, blobs = tmp_path / "snapshots" / "c0ffee", tmp_path / "blobs"
    for folder in (snapshot / "1_Pooling", blobs):
        folder.mkdir(parents=True)
    (blobs / "1").write_text(json.dumps([POOLING | {"path": "1_Pooling"}]))
    (blobs / "2").write_text('{"pooling_mode_cls_token": true}')
    (snapshot / "modules.json").symlink_to("../../blobs/1")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/2")
    assert sentence_transformers.load(snapshot).pooling == "cls"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("1_Pooling/config.json", '{"pooling_mode": 3}'),
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": "yes"}'),
        ("1_Pooling/config.json", "[1]"),
        ("sentence_bert_config.json", '{"max_seq_length": 1e400}'),
        ("sentence_bert_config.json", '{"max_seq_length": -5}'),
        ("config_sentence_transformers.json", '{"prompts": [1]}'),
        ("config_sentence_transformers.json", '{"prompts": {"a": 3}}'),
        ("config_sentence_transformers.json", '{"truncate_dim": "x"}'),
        ("config_sentence_transformers.json", '{"similarity_fn_name": [1]}'),
        ("modules.json", '[{"type": 3, "path": ""}]'),
        ("modules.json", "[" + ", ".join(['{"type": "a.Dropout", "path": ""}'] * 101) + "]"),
    ],
)
def test_files_of_sentence_transformers_have_types(name: str, content: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text(json.dumps([POOLING | {"path": "1_Pooling"}]))
    (tmp_path / name).write_text(content)
    with pytest.raises(PretrainedError, match=f"{name}.*expected|expected.*{name}"):
        sentence_transformers.load(tmp_path)


def test_flax_files_have_bounds(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """{"a": [nil x 70,000]} (map of 1, array of 32-bit length), and a name of 2,000 bytes."""
    monkeypatch.setattr(flax_file, "MAX_VALUES", 60_000)
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(b"\x81\xa1a\xdd" + struct.pack(">I", 70_000) + b"\xc0" * 70_000)
    with pytest.raises(PretrainedError, match="more than 60000 values"):
        flax_file.read_flax(path)
    path.write_bytes(b"\x81\xda" + struct.pack(">H", 2000) + b"n" * 2000 + b"\xc0")
    with pytest.raises(PretrainedError, match="has 2000 bytes"):
        flax_file.read_flax(path)


def test_a_config_that_is_a_pipe_does_not_block(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match="config.json"):
        huggingface.read_config(tmp_path)

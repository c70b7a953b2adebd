"""A section holds the settings of its variant: keys of other variants are refused, layers of values override each other, and runs of earlier versions are read."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from lm_research import cli
from lm_research.config import Config, default_config, dumps, keys, replace, resolve
from lm_research.config.corpus import MixtureSource
from lm_research.config.registries import VARIANTS
from lm_research.config.renamed_keys import RENAMED, renamed
from lm_research.config.run_files import read_keys
from lm_research.config.schema import find
from lm_research.errors import ConfigError

GOLDENS = Path(__file__).parent / "goldens"
HEAD = "from lm_research.config import default_config\ndef get_config():\n    config = default_config()\n"


def foreign_keys() -> Iterator[tuple[str, str, str, Any]]:
    """(section, variant, key that it does not have, its default) of each variant and each key of all others."""
    for section, registry in VARIANTS.items():
        keys = {leaf: key for name in registry for leaf, key in registry.keys(name).items()}
        for name in registry:
            for leaf in keys.keys() - registry.keys(name).keys():
                yield section, name, leaf, keys[leaf].default


def chooser(section: str, name: str) -> dict[str, Any]:
    values = {section: {VARIANTS[section].chooser: name}}
    return values | ({"task": values["task"] | {"train": "x"}} if section == "task" else {})


def test_there_are_foreign_keys() -> None:
    assert {section for section, *_ in foreign_keys()} >= {"objective", "optimizer", "schedule"}
    assert ("objective", "masked_lm", "text_infilling_prob", 0.3) in set(foreign_keys())


def test_every_key_of_another_variant_is_refused(tmp_path: Path) -> None:
    """By values, and each key once by a config file and by a flag, with the variants that have it."""
    given = set[tuple[str, str]]()
    for number, (section, name, leaf, default) in enumerate(foreign_keys()):
        owners, chooses = VARIANTS[section].owners(leaf), f"{section}.{VARIANTS[section].chooser}"
        said = f"config.{section}.{leaf} is a key of {chooses}={' or '.join(owners)}, but this run has {chooses}={name}"
        with pytest.raises(ConfigError) as caught:
            resolve({section: {**chooser(section, name)[section], leaf: default}})
        assert said in str(caught.value)
        if (section, leaf) in given:
            continue
        given.add((section, leaf))
        path = tmp_path / f"{number}.py"
        update = f"{VARIANTS[section].chooser}={name!r}, {leaf}={default!r}"
        path.write_text(f"{HEAD}    config.{section}.update({update})\n    return config\n")
        with pytest.raises(ConfigError) as caught:
            cli.parse([f"--config={path}", f"--workdir={tmp_path}"])
        assert said in str(caught.value)
        path.write_text(f"{HEAD}    return config\n")
        text = json.dumps(default) if isinstance(default, dict | list | tuple) else "" if default is None else default
        with pytest.raises(ConfigError) as caught:
            flags = [f"--config.{chooses}={name}", f"--config.{section}.{leaf}={text}"]
            cli.parse([f"--config={path}", f"--workdir={tmp_path}", *flags])
        assert said in str(caught.value)


def test_keys_without_a_chosen_variant_are_refused() -> None:
    with pytest.raises(ConfigError, match="config.task.patience is set, but no task"):
        resolve({"task": {"patience": 3}})


@pytest.mark.parametrize("section", VARIANTS)
def test_each_variant_has_its_own_settings_and_their_name(section: str) -> None:
    for name in VARIANTS[section]:
        settings = getattr(resolve(chooser(section, name)), section)
        assert type(settings) is VARIANTS[section].settings(name) and VARIANTS[section].name_of(settings) == name


def test_a_flag_that_chooses_another_variant_drops_what_the_file_gave_for_its_own(tmp_path: Path) -> None:
    """The momentum and rate of the file's optimizer are dropped; what both have stays; an error in the file is still reported."""
    path = tmp_path / "c.py"
    path.write_text(
        f"{HEAD}    config.optimizer.update(name='muon', momentum=0.5, beta2=0.5, weight_decay=0.25)\n    return config\n"
    )
    words = [f"--config={path}", f"--workdir={tmp_path}"]
    assert cli.parse(words)[0].optimizer.momentum == 0.5
    optimizer = cli.parse([*words, "--config.optimizer.name=lion"])[0].optimizer
    assert (optimizer.name, optimizer.beta2, optimizer.weight_decay) == ("lion", 0.5, 0.25)
    with pytest.raises(ConfigError, match="momentum is a key of optimizer.name=muon"):
        cli.parse([*words, "--config.optimizer.name=lion", "--config.optimizer.momentum=0.5"])
    path.write_text(f"{HEAD}    config.optimizer.momentum = 0.5\n    return config\n")
    with pytest.raises(
        ConfigError, match="momentum is a key of optimizer.name=muon, but this run has optimizer.name=lion"
    ):
        cli.parse([*words, "--config.optimizer.name=lion"])


def test_replace_goes_from_one_variant_to_another() -> None:
    config = resolve({"optimizer": {"name": "muon", "momentum": 0.5, "beta1": 0.8}})
    assert replace(config, optimizer={"name": "sgd"}).optimizer.beta1 == 0.8
    assert replace(replace(config, optimizer={"name": "sgd"}), optimizer={"name": "muon"}).optimizer.momentum == 0.95


def test_a_task_has_its_own_objective(tmp_path: Path) -> None:
    """A recipe for pre-training may choose another one, whose keys are dropped; a flag may not set them."""
    recipe = {"objective": {"name": "denoising", "text_infilling_prob": 0.4, "decoder_start": "bos"}}
    task = {"task": {"name": "seq2seq", "train": "a.jsonl"}}
    config = resolve(recipe | task)
    assert (config.objective.name, config.objective.decoder_start) == ("seq2seq", "bos")
    assert resolve(json.loads(dumps(config))) == config
    with pytest.raises(ConfigError, match="mask_rate is a key of objective.name=masked_lm"):
        resolve(task | {"objective": {"name": "denoising", "mask_rate": 0.4}})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(recipe))
    words = [f"--config={path}", f"--workdir={tmp_path}", "--config.task.name=seq2seq", "--config.task.train=a.jsonl"]
    assert cli.parse([*words, "--config.objective.target_length=9"])[0].objective.target_length == 9
    with pytest.raises(ConfigError, match="text_infilling_prob is a key of objective.name=denoising"):
        cli.parse([*words, "--config.objective.text_infilling_prob=0.2"])


def test_a_draft_reads_as_its_resolved_config() -> None:
    draft = default_config()
    assert draft.objective.mask_rate == 0.15 and draft.optimizer.learning_rate == 1e-4
    with pytest.raises(AttributeError):
        _ = draft.objective.text_infilling_prob
    draft.objective.name = "denoising"
    assert draft.objective.text_infilling_prob == 0.3
    assert draft.to_dict()["objective"]["text_infilling_prob"] == 0.3 and draft.to_dict()["task"] is None
    assert (
        resolve(draft.copy_and_resolve_references()) == resolve(draft) == resolve({"objective": {"name": "denoising"}})
    )


def test_a_reference_is_followed() -> None:
    draft = default_config()
    draft.eval.every_steps = draft.train.get_ref("num_steps") // 4
    draft.train.num_steps = 80
    assert resolve(draft).eval.every_steps == 20


# The values changed in the files of goldens/; make_goldens.py wrote them with the earlier schema.
STORED: dict[str, dict[str, dict[str, Any]]] = {
    "masked_lm": {"objective": {"mask_rate": 0.2, "sentence_pair": "none"}},
    "denoising": {"objective": {"name": "denoising", "text_infilling_prob": 0.4}, "model": {"family": "bart"}},
    "muon": {"optimizer": {"name": "muon", "momentum": 0.9}, "schedule": {"name": "wsd", "decay_ratio": 0.2}},
    "seq2seq_task": {
        "task": {"name": "seq2seq", "train": "pairs.jsonl", "generation": "num_beams=4,length_penalty=0.6"},
        "objective": {"target_length": 32, "decoder_start": "bos"},
        "model": {"family": "t5"},
    },
    "classification_task": {
        "task": {"name": "classification", "train": "a.jsonl", "labels": "no, yes", "class_weights": "no=1, yes=2.5"},
    },
    "values": {
        "data": {
            "mixture": {"en": {"source": "a.txt", "weight": 0.7}, "de": {"source": "b.txt", "weight": 0.3}},
            "mixture_stages": {100: {"en": 0.5, "de": 0.5}, 200: {"en": 0.1, "de": 0.9}},
        },
        "mesh": {"rules": {"vocab": ["fsdp", "tensor"], "embed": ["none"]}},
        "train": {"freeze": ["encoder/embeddings", "layers/[0-5]/"]},
        "lora": {"rank": 4, "modules_to_save": ["classifier"]},
        "logging": {"trackers": ["tensorboard", "wandb"]},
        "profile": {"steps": [3, 5]},
        "clean": {"scripts": ["latin", "greek"], "redact_pii": ["email", "ip"], "max_characters": 10_000},
    },
}


@pytest.mark.parametrize("name", STORED)
def test_the_config_of_an_earlier_version_is_the_same_run(name: str, tmp_path: Path) -> None:
    """Its keys of other variants were never read; a run resumes from it without reporting a change."""
    from lm_research.run import run_directory

    (tmp_path / "config.json").write_text((GOLDENS / f"{name}.json").read_text())
    config: Config = cli.parse([f"--config={tmp_path}", f"--workdir={tmp_path}"])[0]
    assert config == resolve(STORED[name])
    assert run_directory.check_config(tmp_path, config) == {}


def test_a_stored_config_edited_by_hand_is_refused(tmp_path: Path) -> None:
    stored = json.loads(dumps(Config()))
    stored["objective"]["text_infilling_prob"] = 0.4
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="text_infilling_prob is a key of objective.name=denoising"):
        cli.parse([f"--config={tmp_path}", f"--workdir={tmp_path}"])


# Each key with a value that a user can type, its earlier spelling, and the value in the config.
SPELLINGS: list[tuple[str, str, str, Any]] = [
    (
        "data.mixture",
        '{"en": {"source": "a.txt", "weight": 0.7}, "de": {"source": "b.txt", "weight": 0.3}}',
        "en=a.txt:0.7, de=b.txt:0.3",
        {"en": MixtureSource("a.txt", 0.7), "de": MixtureSource("b.txt", 0.3)},
    ),
    ("data.mixture_stages", '{"100": {"en": 0.5, "de": 0.5}}', "100: en=0.5 de=0.5", {100: {"en": 0.5, "de": 0.5}}),
    (
        "mesh.rules",
        '{"vocab": ["fsdp", "tensor"], "embed": ["none"]}',
        "vocab=fsdp+tensor,embed=none",
        {"vocab": ("fsdp", "tensor"), "embed": ("none",)},
    ),
    ("train.freeze", '["embeddings", "layers/[0-5]/"]', "embeddings,layers/[0-5]/", ("embeddings", "layers/[0-5]/")),
    ("lora.target_modules", '["query/", "value/"]', "query/,value/", ("query/", "value/")),
    ("lora.modules_to_save", '["^classifier/"]', "^classifier/", ("^classifier/",)),
    ("logging.trackers", '["tensorboard", "wandb"]', "tensorboard,wandb", ("tensorboard", "wandb")),
    ("clean.scripts", '["latin", "greek"]', "latin, greek", ("latin", "greek")),
    ("clean.redact_pii", '["email"]', "email", ("email",)),
    ("profile.steps", "[3, 5]", "3-5", (3, 5)),
]


@pytest.mark.parametrize(("name", "typed", "once", "value"), SPELLINGS)
def test_tuples_and_dicts_can_be_typed_and_their_earlier_spellings_are_read(
    name: str, typed: str, once: str, value: Any, tmp_path: Path
) -> None:
    section, leaf = name.split(".")
    (tmp_path / "config.json").write_text("{}")
    for text in (typed, once):
        config = cli.parse([f"--config={tmp_path}", f"--workdir={tmp_path}", f"--config.{name}={text}"])[0]
        assert getattr(getattr(config, section), leaf) == value
        assert resolve(json.loads(dumps(config))) == config and hash(config) == hash(resolve({section: {leaf: once}}))
    assert resolve({section: {leaf: json.loads(typed)}}) == resolve({section: {leaf: once}}) == config


def test_a_single_entry_of_a_dict_can_be_typed(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(f"{HEAD}    config.data.mixture = 'en=a.txt:0.7, de=b.txt:0.3'\n    return config\n")
    words = [f"--config={tmp_path}/c.py", f"--workdir={tmp_path}"]
    found = cli.parse(
        [*words, "--config.data.mixture.en.weight=0.5", '--config.data.mixture.fr={"source": "c.txt", "weight": 0}']
    )[0]
    assert found.data.mixture == {
        "en": MixtureSource("a.txt", 0.5),
        "de": MixtureSource("b.txt", 0.3),
        "fr": MixtureSource("c.txt", 0.0),
    }
    assert cli.parse([*words, "--config.mesh.rules.vocab=fsdp"])[0].mesh.rules == {"vocab": ("fsdp",)}
    stages = ["--config.data.mixture_stages=2: en=0.5 de=0.5", "--config.data.mixture_stages.2.en=0.25"]
    assert cli.parse([*words, *stages])[0].data.mixture_stages == {2: {"en": 0.25, "de": 0.5}}
    for flag, said in (
        ("--config.data.mixture.en.wieght=0.5", "Did you mean 'weight'"),
        ("--config.data.mixture.en.weight=much", "of type float"),
        ("--config.data.mixture.fr.weight=1", "config.data.mixture.fr lacks source"),
        ("--config.train.freeze.x=1", "is not a key of this run"),
        ('--config.data.mixture={"en": 3}', "config.data.mixture.en must be of type {source: str, weight: float}"),
        ('--config.data.mixture={"en": ', "is not JSON"),
        ("--config.profile.steps=[3]", "is not a range of steps"),
        ("--config.train.freeze=[3]", "config.train.freeze must be of type str"),
        ('--config.train.freeze=["a"', "is not JSON"),
        ('--config.data.mixture_stages={"--2": {"en": 1}}', "must be of type int, got '--2'"),
        ('--config.data.mixture_stages={"2": {"en": 1}, "02": {"en": 2}}', "has the same key twice"),
    ):
        with pytest.raises(ConfigError) as caught:
            cli.parse([*words, flag])
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "once"),
    [
        ("train.budget", ""),
        ("train.num_epochs", 0.0),
        ("train.stop_after", 0),
        ("train.init_from", ""),
        ("lora.rank", 0),
        ("eval.every_steps", 0),
        ("checkpoint.every_minutes", 0.0),
        ("mesh.fsdp", 0),
        ("data.validation_source", ""),
        ("data.mixture", ""),
        ("clean.max_characters", 0),
        ("tokenizer.path", ""),
        ("optimizer.clip_norm", 0.0),
        ("objective.eval_mask_rate", 0.0),
    ],
)
def test_formerly_unset_values_are_none(name: str, once: Any, tmp_path: Path) -> None:
    section, leaf = name.split(".")
    assert getattr(getattr(resolve({section: {leaf: once}}), section), leaf) is None
    (tmp_path / "config.json").write_text("{}")
    words = [f"--config={tmp_path}", f"--workdir={tmp_path}"]
    for text in (once, "" if isinstance(once, str) else "none"):
        assert getattr(getattr(cli.parse([*words, f"--config.{name}={text}"])[0], section), leaf) is None


def test_a_deprecated_spelling_is_reported_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_WARNED", set())
    for _ in range(2):
        resolve({"mesh": {"rules": "vocab=fsdp"}})
    assert [record.getMessage() for record in caplog.records] == [
        'config.mesh.rules uses a deprecated spelling; write {"vocab": ["fsdp"]}'
    ]


def test_a_key_of_another_task_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="task.temperature is a key of task.name=embedding, but this run has task.name=tagging"
    ):
        resolve({"task": {"name": "tagging", "temperature": 0.1}})
    with pytest.raises(ConfigError, match="task.doc_stride is a key of task.name=question_answering or tagging"):
        resolve({"task": {"name": "seq2seq", "doc_stride": 8}})


def test_old_spellings_of_tasks() -> None:
    """Texts with commas, and 0 and "" for unset values, as in stored configs and command lines."""
    task = resolve({"task": {"name": "classification", "labels": "a, b", "pair_key": "", "patience": 0}}).task
    assert (task.labels, task.pair_key, task.patience) == (("a", "b"), None, None)
    decoding = {"name": "seq2seq", "generation": "num_beams=4,length_penalty=2.0"}
    assert resolve({"task": decoding}).task.generation == {"num_beams": 4, "length_penalty": 2.0}
    assert resolve({"task": {"name": ""}}).task is None


def test_none_is_typed_for_unset_values(tmp_path: Path) -> None:
    """Also for texts; a regular expression that begins with a bracket is not a list."""
    (tmp_path / "c.py").write_text(
        f"{HEAD}    config.task.update(name='classification', train='x')\n    return config\n"
    )
    words = [f"--config={tmp_path}/c.py", f"--workdir={tmp_path}"]
    for name in (
        "train.budget",
        "model.norm_position",
        "data.validation_source",
        "task.labels",
        "task.class_weights",
        "train.stop_after",
    ):
        config = cli.parse([*words, f"--config.{name}=none"])[0]
        assert getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) is None
    assert cli.parse([*words, "--config.train.freeze=[0-5],x"])[0].train.freeze == ("[0-5]", "x")
    with pytest.raises(ConfigError, match="class_weights is 'balanced', which has no entries"):
        cli.parse([*words, "--config.task.class_weights=balanced", "--config.task.class_weights.a=2"])


@pytest.mark.parametrize("section", ["model", "objective", "optimizer", "schedule"])
def test_required_choices_are_never_none(section: str) -> None:
    which = VARIANTS[section].chooser
    with pytest.raises(ConfigError, match=f"config.{section}.{which} is ''. Valid: "):
        resolve({section: {which: ""}})
    with pytest.raises(ConfigError, match=f"config.{section} is a section, not a key"):
        resolve({section: None})
    with pytest.raises(ConfigError, match=f"config.{section} is a section, not a key"):
        default_config()[section] = None


def test_a_flag_that_a_task_does_not_read_is_refused(tmp_path: Path) -> None:
    """For classification the section objective; for tasks that generate text the name of another objective."""
    (tmp_path / "c.py").write_text(
        f"{HEAD}    config.task.train = 'x'\n    config.train.init_from = 'y'\n    return config\n"
    )
    words = [f"--config={tmp_path}/c.py", f"--workdir={tmp_path}"]
    for task, flag, said in (
        ("classification", "mask_rate=0.3", "does not use the section objective"),
        ("classification", "name=causal_lm", "does not use the section objective"),
        ("seq2seq", "name=causal_lm", "uses objective.name=seq2seq"),
    ):
        with pytest.raises(ConfigError, match=said):
            cli.parse([*words, f"--config.task.name={task}", f"--config.objective.{flag}"])
    cli.parse([*words, "--config.task.name=seq2seq", "--config.objective.name=seq2seq"])


def test_decoding_is_checked_however_it_is_given() -> None:
    for decoding, said in (({"num_beams": True}, "wrong type"), ({"num_beems": 4}, "Did you mean 'num_beams'")):
        with pytest.raises(ConfigError, match=said):
            resolve({"task": {"name": "seq2seq", "train": "x", "generation": decoding}, "train": {"init_from": "y"}})


def test_a_draft_takes_config_dicts_and_is_copied() -> None:
    """Assignment, change in place, reference, copy and pickle work as for a ConfigDict that had every key."""
    config = default_config()
    config.data.mixture = ConfigDict({"en": {"source": "a.txt", "weight": 0.5}})
    config.data.mixture["en"]["weight"] = 0.25
    config.model.intermediate_size = config.model.get_ref("hidden_size") * 4
    config.model.hidden_size = 144
    for copied in (config, copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        resolved = resolve(copied)
        assert (
            resolved.data.mixture == {"en": MixtureSource("a.txt", 0.25)}
            and resolved.model.intermediate_size == 4 * 144
        )
        with pytest.raises(ConfigError, match="infil_rate"):
            copied.objective.infil_rate = 1
    config.data.mixture = {"en": MixtureSource("a.txt", 0.5)}
    with pytest.raises(ConfigError, match="config.data.mixture.en.weight must be a finite number"):
        config.data.mixture = {"en": MixtureSource("a.txt", float("nan"))}


@pytest.mark.parametrize(
    ("old", "new"),
    [(f"{section}.{old}", f"{section}.{new}") for section in RENAMED for old, new in RENAMED[section].items()],
)
def test_an_earlier_name_of_a_key_is_refused_with_its_new_name(old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"config.{old} is an earlier name. The key is now config.{new}: ")):
        find(old)


def test_keys_of_plugins_may_have_an_earlier_name() -> None:
    """A complete config with today's names is not renamed; one without them is."""
    values = {"plugins": ["theirs"], "train": {"on_nonfinite": "stop"}, "task": {"name": "theirs", "target": "x"}}
    assert renamed(values) == values
    assert renamed({"task": {"name": "classification", "target": "value"}})["task"]["problem_type"] == "regression"


@pytest.mark.parametrize("section", ["train", "model", "task", "objective"])
@pytest.mark.parametrize("content", [5, [1], "text", None])
def test_a_section_that_is_not_an_object_is_left_to_the_checks(section: str, content: object) -> None:
    assert renamed({section: content}) == {section: content}
    assert renamed({"task": {"target": [1]}}) == {"task": {"problem_type": [1]}}


def test_keys_of_a_run_of_a_variant_that_no_longer_exists_are_read_as_they_are(tmp_path: Path) -> None:
    stored = {
        "objective": {"name": "gone"},
        **{name: {} for name in ("model", "data", "optimizer", "schedule", "train")},
    }
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert read_keys(tmp_path / "config.json")["objective.name"] == "gone"

"""Sections are the settings of what they choose: keys of others are refused, layers of values go over each other, runs of earlier versions are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm_research import cli
from lm_research.config import Config, default_config, dumps, replace, resolve
from lm_research.config.registries import VARIANTS
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
    assert ("objective", "masked_lm", "infill_rate", 0.3) in set(foreign_keys())


def test_every_key_of_another_variant_is_refused(tmp_path: Path) -> None:
    """By values, by a config file and by a flag, with the variants that have it."""
    for number, (section, name, leaf, default) in enumerate(foreign_keys()):
        owners = VARIANTS[section].owners(leaf)
        said = f"config.{section}.{leaf} is a key of {section}.name={' or '.join(owners)}, and this run has {section}.name={name}"
        with pytest.raises(ConfigError) as caught:
            resolve({section: {**chooser(section, name)[section], leaf: default}})
        assert said in str(caught.value)
        path = tmp_path / f"{number}.py"
        path.write_text(f"{HEAD}    config.{section}.update(name={name!r}, {leaf}={default!r})\n    return config\n")
        with pytest.raises(ConfigError) as caught:
            cli.parse([f"--config={path}", f"--workdir={tmp_path}"])
        assert said in str(caught.value)
        path.write_text(f"{HEAD}    return config\n")
        text = json.dumps(default) if isinstance(default, dict | list | tuple) else "" if default is None else default
        with pytest.raises(ConfigError) as caught:
            flags = [f"--config.{section}.name={name}", f"--config.{section}.{leaf}={text}"]
            cli.parse([f"--config={path}", f"--workdir={tmp_path}", *flags])
        assert said in str(caught.value)


def test_keys_without_anything_chosen_are_refused() -> None:
    with pytest.raises(ConfigError, match="config.task.patience is set, but no task"):
        resolve({"task": {"patience": 3}})


@pytest.mark.parametrize("section", VARIANTS)
def test_each_variant_has_its_own_settings_and_their_name(section: str) -> None:
    for name in VARIANTS[section]:
        settings = getattr(resolve(chooser(section, name)), section)
        assert type(settings) is VARIANTS[section].settings(name) and settings.name == name


def test_a_flag_that_chooses_another_variant_drops_what_the_file_gave_for_its_own(tmp_path: Path) -> None:
    """momentum and rate of the file's optimizer go; what both have stays; what was wrong in the file stays wrong."""
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
        ConfigError, match="momentum is a key of optimizer.name=muon, and this run has optimizer.name=lion"
    ):
        cli.parse([*words, "--config.optimizer.name=lion"])


def test_replace_goes_from_one_variant_to_another() -> None:
    config = resolve({"optimizer": {"name": "muon", "momentum": 0.5, "beta1": 0.8}})
    assert replace(config, optimizer={"name": "sgd"}).optimizer.beta1 == 0.8
    assert replace(replace(config, optimizer={"name": "sgd"}), optimizer={"name": "muon"}).optimizer.momentum == 0.95


def test_a_task_has_the_objective_that_it_reads(tmp_path: Path) -> None:
    """A recipe for pre-training may choose another one, whose keys go with it; a flag may not give those."""
    recipe = {"objective": {"name": "denoising", "infill_rate": 0.4, "decoder_start": "bos"}}
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
    with pytest.raises(ConfigError, match="infill_rate is a key of objective.name=denoising"):
        cli.parse([*words, "--config.objective.infill_rate=0.2"])


def test_a_draft_reads_as_what_it_would_be() -> None:
    draft = default_config()
    assert draft.objective.mask_rate == 0.15 and draft.optimizer.learning_rate == 1e-4
    with pytest.raises(AttributeError):
        _ = draft.objective.infill_rate
    draft.objective.name = "denoising"
    assert draft.objective.infill_rate == 0.3
    assert draft.to_dict()["objective"]["infill_rate"] == 0.3 and draft.to_dict()["task"] is None
    assert (
        resolve(draft.copy_and_resolve_references()) == resolve(draft) == resolve({"objective": {"name": "denoising"}})
    )


def test_a_reference_is_followed() -> None:
    draft = default_config()
    draft.eval.every_steps = draft.train.get_ref("num_steps") // 4
    draft.train.num_steps = 80
    assert resolve(draft).eval.every_steps == 20


# What the files of goldens/ are changed in; make_goldens.py wrote them with the schema of before.
STORED: dict[str, dict[str, dict[str, Any]]] = {
    "masked_lm": {"objective": {"mask_rate": 0.2, "pairs": "none"}},
    "denoising": {"objective": {"name": "denoising", "infill_rate": 0.4}, "model": {"family": "bart"}},
    "muon": {"optimizer": {"name": "muon", "momentum": 0.9}, "schedule": {"name": "wsd", "decay_ratio": 0.2}},
    "seq2seq_task": {
        "task": {"name": "seq2seq", "train": "pairs.jsonl", "decoding": "num_beams=4,length_penalty=0.6"},
        "objective": {"target_length": 32, "decoder_start": "bos"}, "model": {"family": "t5"},
    },
    "classification_task": {
        "task": {"name": "classification", "train": "a.jsonl", "labels": "no, yes", "class_weights": "no=1, yes=2.5"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_the_config_of_an_earlier_version_is_the_same_run(name: str, tmp_path: Path) -> None:
    """Its keys of other variants were never read; a run goes on from it, and says nothing has changed."""
    from lm_research.run import run_directory

    (tmp_path / "config.json").write_text((GOLDENS / f"{name}.json").read_text())
    config: Config = cli.parse([f"--config={tmp_path}", f"--workdir={tmp_path}"])[0]
    assert config == resolve(STORED[name])
    assert run_directory.check_config(tmp_path, config) == {}


def test_a_stored_config_edited_by_hand_is_refused(tmp_path: Path) -> None:
    stored = json.loads(dumps(Config()))
    stored["objective"]["infill_rate"] = 0.4
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="infill_rate is a key of objective.name=denoising"):
        cli.parse([f"--config={tmp_path}", f"--workdir={tmp_path}"])

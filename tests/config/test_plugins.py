"""A user's package adds an objective, an optimizer and a schedule, which runs choose, store and find again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = '''
"""What users write: one line registers each, and its settings lie beside it."""
import dataclasses
import jax.numpy as jnp
import optax
from lm_research.config import ObjectiveConfig, OptimizerConfig, ScheduleConfig, key
from lm_research.objectives.base import OBJECTIVES
from lm_research.objectives.causal_lm import CausalLanguageModel
from lm_research.training.optimizer import OPTIMIZERS, chain
from lm_research.training.schedules import SCHEDULES

@dataclasses.dataclass(frozen=True)
class TheirObjectiveConfig(ObjectiveConfig):
    loudness: float = key(1.0, "Factor on the loss.", low=0.0)

@OBJECTIVES.register("their_objective", TheirObjectiveConfig)
class TheirObjective(CausalLanguageModel):
    """Louder."""
    def sums(self, model, batch, key):
        return {name: self.config.objective.loudness * value for name, value in super().sums(model, batch, key).items()}

@dataclasses.dataclass(frozen=True)
class TheirOptimizerConfig(OptimizerConfig):
    learning_rate: float = key(0.02, "Its own default.", low=0.0)
    warm: int = key(3, "Steps of its own counter.", low=1)

@OPTIMIZERS.register("their_optimizer", TheirOptimizerConfig)
def their_optimizer(config):
    """Two counters."""
    slow = optax.scale_by_schedule(lambda count: jnp.minimum(1.0, (count + 1) / config.warm))
    return chain(config, optax.scale_by_adam(), slow)

@SCHEDULES.register("their_schedule")
def their_schedule(settings, at):
    """Down by a third of the way."""
    return 1.0 - at.done / 3
'''
CHOICES = [
    "objective.name=their_objective",
    "optimizer.name=their_optimizer",
    "schedule.name=their_schedule",
    "objective.loudness=2.0",
]
SMALL = [
    "model.family=gpt2",
    "model.num_layers=1",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.intermediate_size=16",
    "data.max_length=16",
    "train.num_steps=4",
    "train.batch_size=4",
    "tokenizer.vocab_size=300",
    "data.source={folder}/text.txt",
    "logging.trackers=none",
    "eval.num_samples=0",
    "eval.every_steps=none",
    "logging.every_steps=1",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "their_plugin.py").write_text(PLUGIN)
    words = "king son house city day people land man lord went came said gave took saw great good".split()
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(words[n % 7 : n % 7 + 9]) + f" {n}." for n in range(60)))
    (tmp_path / "empty.json").write_text("{}")
    return tmp_path


def run(folder: Path, code: list[str], *arguments: str, fails: bool = False) -> str:
    """The output of a process that finds the plug-in on its path."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    done = subprocess.run(
        [sys.executable, *code, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def flags(*keys: str) -> list[str]:
    return [f"--config.{key}" for key in keys]


TRAIN = [
    "-c",
    """
import json, sys
from lm_research import cli, train
for argv in json.loads(sys.argv[1]):
    if code := cli.call(train.main, argv, command="train", summary=""):
        sys.exit(code)
""",
]


def test_a_run_trains_with_them_and_resumes(folder: Path) -> None:
    """The first half with only an entry point; the rest from the run's stored config, with the result of an uninterrupted run."""
    about = folder / "their_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[lm_research.plugins]\ntheirs = their_plugin\n")
    small = flags(*CHOICES, *(key.format(folder=folder) for key in SMALL))
    commands = [
        ["--config=empty.json", "--workdir=whole", *small],
        ["--config=empty.json", "--workdir=part", "--config.train.stop_after=2", *small],
        ["--config=part", "--workdir=part", "--config.train.stop_after=none"],
    ]
    run(folder, TRAIN, json.dumps(commands))
    whole, part = (json.loads((folder / name / "summary.json").read_text()) for name in ("whole", "part"))
    assert whole["digests"] == part["digests"] and part["step"] == 4
    stored = json.loads((folder / "part" / "config.json").read_text())
    assert stored["objective"] == {"name": "their_objective", "loudness": 2.0}
    assert stored["optimizer"]["learning_rate"] == 0.02 and stored["optimizer"]["warm"] == 3


READ = [
    "-c",
    "import sys; from lm_research import cli; sys.exit(cli.guarded(lambda: print(cli.parse(sys.argv[1:])[0].objective)))",
]


def test_a_stored_config_finds_its_plug_ins_by_itself(folder: Path) -> None:
    """As readers of a run's model do, which are not given their names."""
    stored = {"plugins": ["their_plugin"], "objective": {"name": "their_objective", "loudness": 2.0}}
    (folder / "config.json").write_text(json.dumps(stored))
    code = "from pathlib import Path; from lm_research.config.run_files import read_config; print(read_config(Path('config.json'))['objective'])"
    assert "'loudness': 2.0" in run(folder, ["-c", code])


def test_modules_are_named_by_a_key_that_is_stored(folder: Path) -> None:
    words = ["--workdir=w", *flags(*CHOICES)]
    told = run(folder, READ, "--config=empty.json", *words, fails=True)
    assert "config.objective.loudness is not a key" in told or "config.objective.name is 'their_objective'" in told
    assert "loudness=2.0" in run(folder, READ, "--config=empty.json", *words, "--config.plugins=their_plugin")
    (folder / "stored.json").write_text(
        json.dumps({"plugins": ["their_plugin"], "objective": {"name": "their_objective", "loudness": 2.0}})
    )
    assert "loudness=2.0" in run(folder, READ, "--config=stored.json", "--workdir=w")
    (folder / "c.py").write_text(
        "from lm_research.config import default_config\nimport their_plugin\ndef get_config():\n    config = default_config()\n"
        "    config.objective.update(name='their_objective', loudness=3)\n    return config\n"
    )
    assert "loudness=3.0" in run(folder, READ, "--config=c.py", "--workdir=w")

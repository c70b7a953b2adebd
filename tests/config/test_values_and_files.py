"""Values on a command line, and what a config file may do: each rule of config/keys.py, draft.py, loading.py and run_files.py by an example."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import pytest

from lm_research.config import default_config, loading, registries, run_files, schema, stored, variants
from lm_research.errors import CheckpointError, ConfigError

CONFIG = "from lm_research.config import default_config\n{before}\n\ndef get_config():\n    config = default_config()\n    return config\n"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "0x10", 16),
        ("seed", "0XfF", 255),
        ("seed", "3", 3),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "3", 3.0),
        ("model.scan_layers", "T", True),
        ("model.scan_layers", "0", False),
        ("train.num_epochs", "null", None),  # a number or none: in three spellings, empty, or 0
        ("train.num_epochs", "None", None),
        ("train.num_epochs", "none", None),
        ("train.num_epochs", "", None),
        ("train.num_epochs", "0", None),
        ("data.text_key", "none", None),  # a text or none: `null` may be a name
        ("data.text_key", "null", "null"),
        ("data.text_key", "None", "None"),
        ("data.text_key", "", None),
        ("data.mixture.en.weight", "0", 0.0),  # where 0 is a value
        ("data.mixture.en.weight", "none", None),
    ],
)
def test_values_of_a_command_line(name: str, text: str, value: Any) -> None:
    found = schema.find("data.mixture").at("en.weight") if "mixture" in name else schema.find(name)
    parsed = found.parse(text)
    assert parsed == value and type(parsed) is type(value)


def test_hexadecimal_numbers_are_whole() -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        schema.find("optimizer.learning_rate").parse("0x10")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("x" * 40 + ".num_steps", "Did you mean 'train.num_steps'"),  # the key of another section
        ("trian.num_stepz", "Did you mean 'train.num_steps'"),
        ("q", "not a key of this run. Sections: checkpoint, "),
    ],
)
def test_the_nearest_key(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=nearest):
        schema.check_key(name)


def test_a_section_without_a_variant() -> None:
    """A run needs an objective, but not a task."""
    config = default_config()
    config.task.name = None
    for section, name in (("objective", ""), ("objective", None), ("task", "clasification")):
        with pytest.raises(ConfigError, match=f"config.{section}.name"):
            config[section].name = name


def test_the_variant_is_chosen_before_its_keys_are_set(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of a variant precede its name, and it precedes the plug-in that registers it."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"objective": {"mean_span_length": 4.0, "name": "span_corruption"}}))
    assert loading.load(str(path)).objective.mean_span_length == 4.0
    for kept in ("_found", "_origins"):
        monkeypatch.setattr(registries.OPTIMIZERS, kept, dict(getattr(registries.OPTIMIZERS, kept)))
    (tmp_path / "optimizer_here.py").write_text(
        "from lm_research.config.registries import OPTIMIZERS\nOPTIMIZERS.register('mine')(print)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path.write_text(json.dumps({"optimizer": {"name": "mine"}, "plugins": ["optimizer_here"]}))
    assert loading.load(str(path)).optimizer.name == "mine"
    monkeypatch.delitem(sys.modules, "optimizer_here")


def test_stored_keys_that_no_longer_exist_are_returned() -> None:
    known, unknown = stored.complete({"train": {"gone": 3, "num_steps": 4}, "lost": {"a": 1}, "seed": 5})
    assert unknown == {"train.gone": 3, "lost": {"a": 1}}
    assert (known["train"]["num_steps"], known["seed"]) == (4, 5) and "gone" not in known["train"]


def test_modules_of_a_config_file_are_forgotten_but_not_those_of_packages(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "parts.py").write_text("NUMBER = 1\n")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "installed_here.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (folder / "a.py").write_text(CONFIG.format(before="import installed_here\nfrom configs.parts import NUMBER"))
    before, path = set(sys.modules), list(sys.path)
    loading.load(str(folder / "a.py"))
    assert set(sys.modules) - before == {"installed_here"} and sys.path == path
    monkeypatch.delitem(sys.modules, "installed_here")


@pytest.mark.parametrize(
    ("content", "reason", "fix"),
    [
        (
            None,
            r"\(ModuleNotFoundError: No module named 'plug_in_here'\)",
            "It must be installed, or be in the current",
        ),
        ("import no_such_module", r"No module named 'no_such_module' at .*plug_in_here.py, line 1", "Fix that module."),
        ("\nint('x')", r"\(ValueError: .* at .*plug_in_here.py, line 2\)", "Fix that module."),
        ("raise SystemExit", r"\(SystemExit:  at .*plug_in_here.py, line 1\)", "Fix that module."),
        (
            "from lm_research.errors import DataError\nraise DataError('Too small.')",
            "cannot be imported: Too small.",
            "",
        ),
    ],
)
def test_plug_ins_that_cannot_be_imported(
    content: str | None, reason: str, fix: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "plug_in_here.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=reason) as caught:
        variants.import_plugins(["plug_in_here"])
    said = str(caught.value)
    assert said.startswith("config.plugins names 'plug_in_here', which cannot be imported") and fix in said
    assert ("It must be installed" in said) == (content is None)


def test_steps_of_checkpoints(tmp_path: pathlib.Path) -> None:
    for name in ("2", "10", "6", "06", "latest", "damaged"):
        (tmp_path / name).mkdir()
    assert [run_files.newest_step(tmp_path, below) for below in (None, 11, 10, 6, 2)] == [10, 10, 6, 2, None]


def test_a_stored_config_of_earlier_names_is_read_by_its_current_ones(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"data": {"documents": "line"}, "train": {"odd": 1}}))
    keys = run_files.read_keys(path)
    assert keys["data.document_separator"] == "line" and "data.documents" not in keys and keys["train.odd"] == 1
    path.write_text(json.dumps({"plugins": [], "train": {"on_nonfinite": "skip", "odd": 1}}))
    assert run_files.read_keys(path) == {"plugins": [], "train.on_nonfinite": "skip", "train.odd": 1}  # as it is
    assert run_files.read_config(path)["train"]["on_nonfinite"] == "skip"
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"summary.json is .*expected object") as caught:
        run_files.read_summary(tmp_path)
    assert str(caught.value).endswith("Restore it, or repeat the run in another --workdir.")


@pytest.mark.parametrize(
    "line", ['{"step": 0}', '{"step": 2147483647, "x": 1.5}', '{"step": 1, "x": 9223372036854775807}']
)
def test_lines_of_metrics(line: str) -> None:
    assert run_files.line_of(line) == json.loads(line)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"step": -1}', "with a step"),
        ('{"step": 2147483648}', "with a step"),
        ('{"step": true}', "with a step"),
        ('{"loss": 1}', "with a step"),
        ("[1]", "with a step"),
        ('{"step": 1, "x": "2"}', "its x is not a number"),
        ('{"step": 1, "x": true}', "its x is not a number"),
        ('{"step": 1, "x": 9223372036854775808}', "its x is not a number"),
    ],
)
def test_lines_that_are_not_metrics(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        run_files.line_of(line)

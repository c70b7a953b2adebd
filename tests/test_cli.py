"""The command line: what a command's main receives, which exit code it returns, and what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lm_research import cli
from lm_research.config import Config, describe, dumps, replace, resolve
from lm_research.errors import ConfigError, DataError, NonFiniteLoss

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"


def parse(tmp_path: Path, *argv: str) -> Config:
    return cli.parse([QUICKSTART, f"--workdir={tmp_path}", *argv])[0]


def call(main: Callable[[Config, Path], int | None], *argv: str) -> int:
    return cli.call(main, argv, command="train", summary="Pre-trains a language model.")


def unreachable(config: Config, workdir: Path) -> int:
    raise AssertionError("main must not run")


def test_main_gets_the_config_and_the_workdir(tmp_path: Path) -> None:
    seen = []
    assert call(lambda config, workdir: seen.append((config, workdir)), QUICKSTART, f"--workdir={tmp_path}/new") == 0
    (config, workdir) = seen[0]
    assert workdir == tmp_path / "new" and not workdir.exists()  # the command creates it, not the flags
    assert config == resolve(__import__("lm_research.config.loading").config.loading.load(QUICKSTART.split("=")[1]))


@pytest.mark.parametrize(
    ("argv", "section", "key", "value"),
    [
        (["--config.train.num_steps=7"], "train", "num_steps", 7),
        (["--config.train.num_steps", "7"], "train", "num_steps", 7),
        (["-config.train.num_steps=7"], "train", "num_steps", 7),
        (["--config.train.num_steps=7", "--config.train.num_steps=8"], "train", "num_steps", 8),
        (["--config.optimizer.learning_rate=1"], "optimizer", "learning_rate", 1.0),
        (["--config.optimizer.learning_rate=3e-5"], "optimizer", "learning_rate", 3e-5),
        (["--config.model.scan_layers=false"], "model", "scan_layers", False),
        (["--config.model.scan_layers", "false"], "model", "scan_layers", False),
        (["--noconfig.model.scan_layers"], "model", "scan_layers", False),
        (["--config.tokenizer.keep_newlines"], "tokenizer", "keep_newlines", True),
        (["--config.tokenizer.keep_newlines", "--debug"], "tokenizer", "keep_newlines", True),
        (["--config.data.source=a file, with=signs.txt"], "data", "source", "a file, with=signs.txt"),
        (["--config.data.cache_dir="], "data", "cache_dir", None),
        (["--config.tokenizer.path", "", "--config.seed=3"], "tokenizer", "path", None),
        (["--config.data.source=None"], "data", "source", "None"),
    ],
)
def test_overrides(tmp_path: Path, argv: list[str], section: str, key: str, value: object) -> None:
    result = getattr(getattr(parse(tmp_path, *argv), section), key)
    assert result == value and type(result) is type(value)


def test_overrides_may_precede_the_config_and_change_only_one_key(tmp_path: Path) -> None:
    plain = parse(tmp_path)
    config, workdir = cli.parse(["--config.seed=5", "--workdir", str(tmp_path), "--config", QUICKSTART.split("=")[1]])
    assert workdir == tmp_path
    assert config == replace(plain, seed=5) != plain


def test_an_override_may_correct_an_error_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text(
        "from lm_research.config import default_config\n"
        "def get_config():\n    config = default_config()\n    config.model.hidden_size = 100\n    return config\n"
    )
    with pytest.raises(ConfigError, match="not a multiple"):
        cli.parse([f"--config={path}", f"--workdir={tmp_path}"])
    assert (
        cli.parse([f"--config={path}", f"--workdir={tmp_path}", "--config.model.num_heads=10"])[0].model.num_heads == 10
    )


@pytest.mark.parametrize("beside", ["train.init_from", "tokenizer.path"])
@pytest.mark.parametrize("key", ["type=bpe", "vocab_size=999", "lowercase=true", "sentinels=5"])
def test_flags_of_a_tokenizer_to_train_where_none_is_trained(tmp_path: Path, beside: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"--config.tokenizer.{key.partition('=')[0]} .*{beside}=somewhere.*Remove"):
        parse(tmp_path, f"--config.{beside}=somewhere", f"--config.tokenizer.{key}")
    assert parse(
        tmp_path, f"--config.{beside}=somewhere", "--config.tokenizer.keep_newlines=true"
    )  # recipes have the others


def test_argument_of_get_config(tmp_path: Path) -> None:
    config, _ = cli.parse([f"{QUICKSTART}:gpt", f"--workdir={tmp_path}"])
    assert config.objective.name == "causal_lm"


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_stored_config_round_trips(tmp_path: Path, name: str) -> None:
    config = replace(parse(tmp_path), train=dict(num_steps=123), schedule=dict(warmup_ratio=0.25))
    (tmp_path / "config.json").write_text(dumps(config))
    again, _ = cli.parse([f"--config={tmp_path / name}", f"--workdir={tmp_path}"])
    assert again == config


def test_config_files_import_each_other_wherever_the_command_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    modules, path = dict(sys.modules), list(sys.path)
    assert cli.parse([f"--config={ROOT}/configs/bert_tiny.py", "--workdir=w"])[0].model.num_layers == 2
    for number in (3, 4):  # two checkouts in one process do not mix
        folder = tmp_path / f"checkout{number}" / "configs"
        folder.mkdir(parents=True)
        (folder / "base.py").write_text(
            "from lm_research.config import default_config\n"
            f"def get_config():\n    config = default_config()\n    config.seed = {number}\n    return config\n"
        )
        (folder / "mine.py").write_text("from configs.base import get_config\n")
        assert cli.parse([f"--config={folder}/mine.py", "--workdir=w"])[0].seed == number
    assert sys.path == path
    assert {name for name in sys.modules if name.startswith("configs")} <= modules.keys()


def test_absl_flags_count_as_parsed(tmp_path: Path) -> None:
    from absl import flags

    parse(tmp_path)
    assert flags.FLAGS.is_parsed()


def test_help_is_short_and_needs_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["-h"], ["--nonsense", "--help"]):
        assert call(unreachable, *argv) == 0
        out = capsys.readouterr().out
        assert "python -m lm_research.train --config=configs/quickstart.py --workdir=runs/quickstart" in out
        assert len(out.splitlines()) < 20 and max(map(len, out.splitlines())) <= 120


def test_help_config_lists_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help_config"], [QUICKSTART, "--help_config"]):
        assert call(unreachable, *argv) == 0
        assert capsys.readouterr().out == describe() + "\n"


def raiser(error: BaseException) -> Callable[[Config, Path], int]:
    def main(config: Config, workdir: Path) -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (lambda config, workdir: None, 0),
        (lambda config, workdir: 0, 0),
        (lambda config, workdir: 75, 75),
        (raiser(DataError("the corpus is empty. Give another.")), 2),
        (raiser(NonFiniteLoss("loss is nan at step 3")), 3),
        (raiser(ValueError("a bug")), 1),
    ],
)
def test_exit_codes(tmp_path: Path, main: Callable[[Config, Path], int | None], code: int) -> None:
    assert call(main, QUICKSTART, f"--workdir={tmp_path}") == code


def test_a_user_error_is_one_paragraph_and_a_bug_keeps_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (QUICKSTART, f"--workdir={tmp_path}")
    mistake = raiser(DataError("the corpus\nis empty.   Give another."))
    call(mistake, *flags)
    assert capsys.readouterr().err == "error: the corpus is empty. Give another.\n"
    call(mistake, *flags, "--debug")
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("error: the corpus is empty. Give another.\n")
    call(raiser(ValueError("a bug")), *flags)
    assert "Traceback" in capsys.readouterr().err


def test_interrupts_pass_through(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        call(raiser(KeyboardInterrupt()), QUICKSTART, f"--workdir={tmp_path}")


VERB = """
import json, sys
from lm_research import cli

def main(config, workdir):
    print(json.dumps([config.train.num_steps, str(workdir)]))
    return 75

if __name__ == "__main__":
    cli.run(main, command="train", summary="Counts.")
"""


def run_verb(tmp_path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "verb.py").write_text(VERB)
    command = [sys.executable, str(tmp_path / "verb.py"), *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)


def test_a_separate_process(tmp_path: Path) -> None:
    done = run_verb(tmp_path, QUICKSTART, "--workdir=w", "--config.train.num_steps=9")
    assert (done.returncode, done.stderr) == (75, "")
    assert json.loads(done.stdout) == [9, "w"]


def test_a_user_error_in_a_separate_process(tmp_path: Path) -> None:
    done = run_verb(tmp_path, QUICKSTART, "--workdir=w", "--config.train.num_step=9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: config.train.num_step is not a key") and done.stderr.count("\n") == 1


def test_help_config_into_a_closed_pipe(tmp_path: Path) -> None:
    (tmp_path / "verb.py").write_text(VERB)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(tmp_path / "verb.py"), "--help_config"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_arguments_that_are_not_utf_8() -> None:
    """They arrive as halves of surrogate pairs (PEP 383), which cannot be written to any file of the run."""
    code = f"import sys; sys.argv[1:] = []; from lm_research import cli; sys.exit(cli.guarded(print, argv=[{chr(39)}--a=\\udce9{chr(39)}]))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 2 and found.stderr.count("\n") == 1 and r"\udce9" in found.stderr and not found.stdout


def test_a_terminal_that_cannot_show_a_text() -> None:
    code = (
        "import sys; from lm_research import cli; sys.exit(cli.guarded(lambda: print('caf\\xe9 \\U0001f600'), argv=[]))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (found.returncode, found.stdout, found.stderr) == (0, "caf\\xe9 \\U0001f600\n", "")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), MemoryError("Unable to allocate 1.12 TiB"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory")],
)
def test_missing_memory_is_not_a_bug(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        raise error

    assert cli.guarded(action, argv=[]) == 2
    told = capsys.readouterr().err
    assert (
        told.startswith("error: There is not enough memory: ") and "smaller batches" in told and told.count("\n") == 1
    )

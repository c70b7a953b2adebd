"""The command: rows in, records out in their order, after any kill and with any number of processes."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from helpers.golden_pipelines import CONTENT, write_model
from lm_research import pipeline, pipelines, predict

WORDS = CONTENT["vocab"][5:40]
TEXTS = [" ".join(WORDS[(3 * n + k) % len(WORDS)] for k in range(2 + n % 5)) for n in range(11)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("predict")
    write_model("classes", folder / "model")
    (folder / "in.txt").write_text("\n".join(TEXTS) + "\n")
    rows = "".join(f'{n},"{text}"\n' for n, text in enumerate(TEXTS))
    (folder / "in.csv").write_text(f"id,body\n{rows}")
    return folder


@pytest.fixture(scope="module")
def expected(folder: pathlib.Path) -> list[dict[str, Any]]:
    answers = pipeline("text-classification", folder / "model", batch_size=4)(TEXTS, top_k=2)
    return [{"row": n, "input": text, "output": answers[n]} for n, text in enumerate(TEXTS)]


def run(folder: pathlib.Path, output: pathlib.Path, *flags: str, source: str = "in.txt") -> int:
    given = [
        f"--model={folder}/model",
        "--task=text-classification",
        f"--input={folder}/{source}",
        f"--output={output}",
    ]
    return predict.main([*given, "--batch_size=4", "--top_k", "2", *flags])


def records(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_and_records(folder: pathlib.Path, expected: list, tmp_path: pathlib.Path) -> None:
    assert run(folder, tmp_path / "a.jsonl") == 0
    assert records(tmp_path / "a.jsonl") == expected
    assert run(folder, tmp_path / "b.jsonl", "--text_key=body", source="in.csv") == 0
    assert records(tmp_path / "b.jsonl") == expected


@pytest.mark.parametrize("cut", [1, -20])
def test_it_resumes_where_it_was_killed(folder: pathlib.Path, expected: list, tmp_path: pathlib.Path, cut: int) -> None:
    """A kill may leave a file cut off anywhere."""
    output = tmp_path / "a.jsonl"
    assert run(folder, output) == 0
    whole = output.read_bytes()
    output.write_bytes(whole[:cut])
    assert run(folder, output) == 0
    assert output.read_bytes() == whole and records(output) == expected


BLANK = ["", TEXTS[0], "", " \t", TEXTS[1], "", "", "", "", TEXTS[2], ""]


def test_a_blank_line_has_a_row_without_an_answer(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """`row` is the line's number from 0, so that an output can be pasted next to its input; five to eight are a batch without a text."""
    (tmp_path / "in.txt").write_bytes("".join(f"{line}\r\n" for line in BLANK).encode())
    flags = (f"--input={tmp_path}/in.txt",)
    assert run(folder, tmp_path / "a.jsonl", *flags) == 0
    found = records(tmp_path / "a.jsonl")
    assert [(one["row"], one["input"]) for one in found] == list(enumerate(BLANK))
    assert [one["output"] is None for one in found] == [not line.strip() for line in BLANK]
    answers = pipeline("text-classification", folder / "model")(TEXTS[:3], top_k=2)
    assert [one["output"][0]["label"] for one in found if one["output"]] == [one[0]["label"] for one in answers]
    whole = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(whole[: len(whole) // 2])
    assert run(folder, tmp_path / "a.jsonl", *flags) == 0 and (tmp_path / "a.jsonl").read_bytes() == whole
    for process in range(3):
        assert run(folder, tmp_path / "b.jsonl", *flags, "--num_processes=3", f"--process_id={process}") == 0
    shared = records(tmp_path / "b.jsonl")
    assert [(one["row"], one["input"], one["output"] is None) for one in shared] == [
        (one["row"], one["input"], one["output"] is None) for one in found
    ]


def test_several_processes_share_the_rows(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert run(folder, tmp_path / "alone.jsonl") == 0
    output = tmp_path / "a.jsonl"
    for process in (2, 0, 1):
        assert not output.exists()
        assert run(folder, output, "--num_processes=3", f"--process_id={process}") == 0
    assert [line["input"] for line in records(output)] == TEXTS
    for own, alone in zip(records(output), records(tmp_path / "alone.jsonl"), strict=True):
        assert own["row"] == alone["row"] and own["output"][0]["label"] == alone["output"][0]["label"]
        assert own["output"][0]["score"] == pytest.approx(alone["output"][0]["score"], abs=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.jsonl",
        "a.jsonl.made_from.json",
        "alone.jsonl",
        "alone.jsonl.made_from.json",
    ]
    assert run(folder, output, "--num_processes=3", "--process_id=1") == 0  # once more changes nothing
    assert [line["row"] for line in records(output)] == list(range(11))


def test_errors(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said() -> str:
        return capsys.readouterr().err

    output = tmp_path / "a.jsonl"
    assert run(folder, output, "--task=text-clasification") == 2 and "Did you mean 'text-classification'" in said()
    assert run(folder, output, "--process_id=1") == 2 and "from 0 to one less" in said()
    assert run(folder, tmp_path / "b.jsonl", source="in.csv") == 2
    assert "in.csv, line 2 has no text in field 'text'; its fields: id, body" in said()
    assert (
        run(folder, tmp_path / "c.jsonl", "--task=question-answering") == 2 and "question, context, not lines" in said()
    )
    assert run(folder, tmp_path / "d.jsonl", source="no.txt") == 2 and "does not exist" in said()
    assert run(folder, output) == 0
    assert run(folder, output, "--function_to_apply=none") == 2
    assert "was started with options {'top_k': 2}" in said()
    (tmp_path / "e.jsonl").write_text("mine")
    assert run(folder, tmp_path / "e.jsonl") == 2 and "was not made by this command" in said()
    assert (tmp_path / "e.jsonl").read_text() == "mine"
    assert run(folder, tmp_path / "f.jsonl", "--tok_k=2") == 2 and "Did you mean 'top_k'" in said()
    assert run(folder, tmp_path / "e.jsonl" / "g.jsonl") == 2 and "cannot be created" in said()
    assert run(folder, tmp_path) == 2 and "is a directory" in said()
    (tmp_path / "q.jsonl").write_text('{"question": "who?", "context": null}\n')
    flags = ("--task=question-answering", f"--input={tmp_path}/q.jsonl", "--top_k=1")
    assert run(folder, tmp_path / "h.jsonl", *flags) == 2 and "q.jsonl, line 1 has None as 'context'" in said()


MISTAKEN = (["--model=/no/such"], ["--function_to_apply=maximum"], ["--text_key=bodies"], ["--top_k=1", "--nonsense=3"])


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("flags", MISTAKEN)
def test_a_failed_command_does_not_restrict_the_next(
    folder: pathlib.Path, expected: list, tmp_path: pathlib.Path, flags: list[str], processes: int
) -> None:
    output = tmp_path / "a.jsonl"
    given = (f"--input={folder}/in.csv", "--text_key=body", f"--num_processes={processes}")
    assert run(folder, output, *given, *flags) == 2
    assert not list(tmp_path.iterdir())
    for process in range(processes):
        assert run(folder, output, *given, f"--process_id={process}") == 0
    assert [line["output"][0]["label"] for line in records(output)] == [one["output"][0]["label"] for one in expected]


def test_the_first_rows_decide_between_two_commands(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second command starts the output while the first reads its model: the first must not add its rows."""
    output, read = tmp_path / "a.jsonl", pipelines.pipeline

    def slow(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(pipelines, "pipeline", read)
        assert run(folder, output, "--num_processes=2", "--process_id=1") == 0
        return read(*args, **options)

    monkeypatch.setattr(pipelines, "pipeline", slow)
    flags = ("--num_processes=2", "--process_id=0")
    assert run(folder, output, *flags, "--function_to_apply=none") == 2
    assert "was started with options {'top_k': 2}" in capsys.readouterr().err
    assert run(folder, output, *flags) == 0 and [line["input"] for line in records(output)] == TEXTS


def test_a_complete_part_stays_complete(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started again and killed, the process that had finished has lost no row: its part has 6, and batches have 4."""
    output, flags = tmp_path / "a.jsonl", ("--num_processes=2",)
    assert run(folder, output, *flags, "--process_id=0") == 0
    part = tmp_path / "a.jsonl.part_0_of_2"
    before = part.read_bytes()
    assert before.count(b"\n") == 6

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipelines, "pipeline", killed)  # while it reads the model, or, if it needs none, at its end
    monkeypatch.setattr(predict.Part, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, output, *flags, "--process_id=0")
    monkeypatch.undo()
    assert part.read_bytes() == before
    assert run(folder, output, *flags, "--process_id=1") == 0
    assert [line["input"] for line in records(output)] == TEXTS


def test_no_rows_give_an_empty_output(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "in.csv").write_text("body\n")
    given = (f"--input={tmp_path}/in.csv", "--text_key=body")
    assert run(folder, tmp_path / "a.jsonl", *given) == 0 and (tmp_path / "a.jsonl").read_bytes() == b""
    for process in (1, 0):
        assert run(folder, tmp_path / "b.jsonl", *given, "--num_processes=2", f"--process_id={process}") == 0
    assert (tmp_path / "b.jsonl").read_bytes() == b""


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", "\0", "null"], ids=range(5))
def test_damaged_notes_are_reported_and_rows_kept(
    folder: pathlib.Path, tmp_path: pathlib.Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, notes = tmp_path / "a.jsonl", tmp_path / "a.jsonl.made_from.json"
    output.write_text('{"row": 0}\n')
    notes.write_text(text)
    assert run(folder, output) == 2
    error = capsys.readouterr().err
    assert "a.jsonl.made_from.json" in error and error.count("\n") == 1
    assert output.read_text() == '{"row": 0}\n' and notes.read_text() == text

"""`python -m lm_research.predict --model PATH --task TASK --input FILE --output FILE.jsonl`: run a task on every row of a file.

    ... --task text-classification --input reviews.csv --text_key review --output labels.jsonl
    ... --task question-answering --input questions.jsonl --output answers.jsonl       fields question and context
    ... --task summarization --input texts.txt --output short.jsonl --max_new_tokens 80 --num_beams 4
    ... --num_processes 8 --process_id 3     one of eight processes, on any machines with a shared file system

Tasks are those of lm_research.pipeline; its options are flags, with lists written as JSON. Rows are lines of a text file, or records
of .jsonl, .csv, .tsv or .parquet files. The output has one JSON object per row, in the order of the input: {"row": number from 0,
"input": ..., "output": ...}; the output of a blank line of text is null. The same command resumes one that was killed. With several
processes, the last one to end joins their parts.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import tqdm

from lm_research import cli
from lm_research.common import disk, flags
from lm_research.common.bucket_copies import BucketCopy
from lm_research.common.documents import parse_json, read_bytes, short
from lm_research.common.paths import as_path, is_remote
from lm_research.common.rounding import ceil_div
from lm_research.errors import DataError, UserError

FORMAT = 2  # version of the output: it changes when inputs are divided into rows differently
_FIELDS = {  # task -> fields of its input, for tasks whose input is not a single text
    "question-answering": ("question", "context"),
    "sentence-similarity": ("source_sentence", "sentences"),
    "conversational": ("messages",),
}


class BlankLine(str):
    """Blank line of a text file: a row without an output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = flags.Parser(
        prog="python -m lm_research.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        required=True,
        type=flags.path_text,
        help="model directory (in the Hugging Face format, in the native format, or of a run), or a .gguf file",
    )
    parser.add_argument("--task", required=True, help="task of lm_research.pipeline")
    parser.add_argument("--input", required=True, type=flags.path_text, help="file of texts or records")
    parser.add_argument("--output", required=True, type=flags.path_text, help="file to write, one JSON object per row")
    parser.add_argument("--text_key", default="text", help="field of the text in records (text)")
    parser.add_argument("--pair_key", default="", help="text-classification: field of a second text")
    parser.add_argument("--batch_size", type=flags.bounded(int, 1, 2**20), default=16, help="rows per batch (16)")
    parser.add_argument(
        "--num_processes", type=flags.bounded(int, 1, 2**20), default=1, help="processes that divide the rows (1)"
    )
    parser.add_argument(
        "--process_id", type=flags.bounded(int, 0, 2**20), default=0, help="number of this process, from 0"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type of parameters and computation"
    )
    parser.add_argument("--mesh", help="mesh to divide the model over, such as fsdp=4,tensor=2 (one device)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return cli.parsed(parser, run, argv, rest=True)


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Run the task as the arguments specify; `rest` are options of the task.

    Raises:
      UserError: an argument is invalid, the input cannot be read, or the output belongs to another command.
    """
    from lm_research.pipelines import find_pipeline_class  # after the arguments are checked: it loads JAX

    kind = find_pipeline_class(args.task)
    if args.batch_size < 1 or not 0 <= args.process_id < args.num_processes:
        raise UserError(
            f"--batch_size={args.batch_size}, --num_processes={args.num_processes}, --process_id={args.process_id}: the batch size must be "
            "at least 1, and the process id from 0 to one less than the number of processes."
        )
    options = task_options(rest)
    kind.check_options(args.task, options)
    if is_remote(args.output) and args.num_processes > 1:
        raise UserError(
            f"--output={args.output} is in a bucket, where processes cannot join their parts of a file. Give each part of the input its own "
            "command and --output, or an --output on storage that all processes mount."
        )
    with BucketCopy.of_file(as_path(args.output)) as output:
        part = Part(args, options, output)
        if part.joined:
            return
        with disk.reporting_disk_errors(lambda: f"{part.done:,} rows have been written and are kept.", output):
            _predict(args, options, part)


def _predict(args: argparse.Namespace, options: dict[str, Any], part: Part) -> None:
    """Predict and write the remaining rows."""
    from lm_research.pipelines import pipeline
    from lm_research.run.compile_cache import use_compile_cache

    use_compile_cache()
    rows = itertools.islice(enumerate(read_rows(args)), args.process_id, None, args.num_processes)
    left: Iterator[tuple[int, Any]] = itertools.islice(rows, part.done, None)
    first = next(left, None)
    if first is not None:
        left = itertools.chain([first], left)
        pipe = pipeline(args.task, args.model, dtype=args.dtype, mesh=args.mesh, batch_size=args.batch_size)
        bar = tqdm.tqdm(total=count_rows(args), initial=part.done, unit="row", disable=not sys.stderr.isatty())
        with bar:
            while batch := list(itertools.islice(left, args.batch_size)):
                inputs = [one for _, one in batch if not isinstance(one, BlankLine)]
                answers = iter(pipe(inputs, **options) if inputs else [])
                part.write(
                    [
                        {"row": number, "input": one, "output": None if isinstance(one, BlankLine) else next(answers)}
                        for number, one in batch
                    ]
                )
                bar.update(len(batch))
    if part.finish():
        print(f"{args.output}: {part.total:,} rows", file=sys.stderr)


def task_options(rest: Sequence[str]) -> dict[str, Any]:
    """Parse flags into options of the task: `--name value`, `--name=value`, `--name` for True; values are JSON if they parse."""
    options: dict[str, Any] = {}
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"Unexpected argument {word!r}. A text with spaces needs quotes; --help shows the usage.")
        name, equals, value = word[2:].partition("=")
        if not equals and words and not words[0].startswith("--"):
            equals, value = "=", words.pop(0)
        try:
            options[name.replace("-", "_")] = cli.json_word(value) if equals else True
        except ValueError:
            options[name.replace("-", "_")] = {"None": None, "True": True, "False": False}.get(value, value)
    return options


def read_rows(args: argparse.Namespace) -> Iterator[Any]:
    """Yield the inputs of the task; raise a DataError that names file and line."""
    from lm_research.config import resolve
    from lm_research.data.sources.files import find_files
    from lm_research.data.sources.problems import Problems
    from lm_research.data.sources.text import read_lines
    from lm_research.pipelines import find_pipeline_class
    from lm_research.tasks.records import read_records

    kind, fields = find_pipeline_class(args.task), _FIELDS.get(args.task)
    for file in find_files(args.input):
        if file.kind == "text":
            if fields:
                raise DataError(
                    f"{file.path}: {args.task} reads records with the fields {', '.join(fields)}, not lines. Give .jsonl or .csv."
                )
            lines = (line.removesuffix("\n") for _, line in read_lines(file, Problems("stop")))
            yield from (line if line.strip() else BlankLine(line) for line in lines)
            continue
        for record in read_records(str(file.path), resolve({})):
            if fields:
                for name in fields:
                    if name not in record.fields:
                        raise DataError(f"{record.where} has no field {name!r}, which {args.task} needs. Fix it.")
                values = {name: record.fields[name] for name in fields}
                values = values["messages"] if args.task == "conversational" else values
                if wrong := kind.input_error(values):
                    raise DataError(f"{record.where} {wrong}")
                yield values
                continue
            for key, flag in ((args.text_key, "text_key"), (args.pair_key, "pair_key")):
                if key and not isinstance(record.fields.get(key), str):
                    raise DataError(
                        f"{record.where} has no text in field {key!r}; its fields: {', '.join(record.fields)}. Name the right one in --{flag}."
                    )
            text = record.fields[args.text_key]
            yield {"text": text, "text_pair": record.fields[args.pair_key]} if args.pair_key else text


def count_rows(args: argparse.Namespace) -> int | None:
    """Estimate the number of this process's rows; None if that requires reading the input."""
    path = pathlib.Path(args.input)
    if not path.is_file() or path.suffix not in (".txt", ".jsonl"):
        return None
    with path.open("rb") as file:
        lines, last = 0, b"\n"
        while block := file.read(1 << 20):
            lines, last = lines + block.count(b"\n"), block[-1:]
        lines += last != b"\n"
    return ceil_div(lines - args.process_id, args.num_processes)


class Part:
    """Output of one process: the whole output, or a part file next to it.

    A file next to the output (OUTPUT.made_from.json) records what it is made from, and is locked while processes examine each other's
    files. It is written with the first rows, so that a command that fails earlier does not restrict a corrected one.

    Attributes:
      done: number of finished rows, including those of earlier attempts.
      joined: whether the parts of all processes have been joined to the output.
      total: number of rows of the whole output, once `finish` has returned True.
    """

    def __init__(self, args: argparse.Namespace, options: dict[str, Any], output: pathlib.Path) -> None:
        self.output, self.parts, self.total = output, args.num_processes, 0
        self._make_folder()
        self.path = self.output if self.parts == 1 else self._part(args.process_id)
        self.facts = self.output.with_name(self.output.name + ".made_from.json")
        stat = os.stat(args.input) if os.path.isfile(args.input) else None
        made_from = {
            "model": str(args.model),
            "task": args.task,
            "input": str(args.input),
            "bytes": stat.st_size if stat else None,
            "text_key": args.text_key,
            "pair_key": args.pair_key,
            "options": options,
            "num_processes": self.parts,
            "dtype": args.dtype,
            "format": FORMAT,
        }
        self._made_from = json.loads(json.dumps(made_from))
        self._claimed, self.joined, self.done = False, False, 0
        existing = self._files()  # before self.facts is examined, which other processes write before their rows
        if not self.facts.exists():
            if existing:
                raise UserError(
                    f"{existing[0]} exists and was not made by this command. Choose another --output, or delete it."
                )
            return
        with self._locked():
            if self._changed():
                return
            self.joined = self.output.exists() and self.parts > 1
            if _done(self.path).exists():  # the part is complete, and other processes may join it now
                self.done = _count(self.path)
            elif not self.joined:
                self.done = _whole_lines(self.path, args.batch_size)

    def _part(self, number: int) -> pathlib.Path:
        return self.output.with_name(f"{self.output.name}.part_{number}_of_{self.parts}")

    def _files(self) -> list[pathlib.Path]:
        """List the existing output, part files of any number of processes, and the markers of complete parts."""
        parts = (path for path in self.output.parent.iterdir() if path.name.startswith(f"{self.output.name}.part_"))
        return [path for path in (self.output, *sorted(parts)) if path.exists()]

    def _make_folder(self) -> None:
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--output={self.output}: the directory {self.output.parent} cannot be created ({disk.describe_os_error(error, self.output)}). Choose another place."
            ) from error
        if self.output.is_dir():
            raise UserError(
                f"--output={self.output} is a directory. Give the name of a file in it, such as answers.jsonl."
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[str]]:
        """Open the made_from file with an exclusive lock."""
        try:
            file = self.facts.open("a+")
        except OSError as error:
            raise UserError(
                f"--output={self.output}: {self.facts} cannot be written ({disk.describe_os_error(error, self.facts)}). Fix that, or choose another place."
            ) from error
        with disk.with_filename(self.facts), file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _changed(self) -> bool:
        """Return whether another command started the output without writing rows; raise a UserError if it wrote some."""
        before = self._before()
        changed = [name for name in self._made_from if before.get(name) != self._made_from[name]]
        if changed and any(path.stat().st_size or path.name.endswith(".done") for path in self._files()):
            raise UserError(
                f"{self.output} was started with {', '.join(f'{name} {short(before.get(name))}' for name in changed)}, but this command has "
                f"{', '.join(f'{name} {short(self._made_from[name])}' for name in changed)}. Choose another --output, or delete it and the "
                f"files next to it that start with its name ({self.facts.name} and parts)."
            )
        return bool(changed)

    def _before(self) -> dict[str, Any]:
        """Read the made_from file, {} if it is empty; raise a UserError if it is damaged and rows have been written."""
        fix = f"Restore it, choose another --output, or delete {self.output} and the files next to it that start with its name."
        data = read_bytes(self.facts, error=UserError, fix=fix)
        try:
            return parse_json(data, str(self.facts), error=UserError, fix=fix) if data.strip() else {}
        except UserError:
            if any(path.stat().st_size for path in self._files()):
                raise
            return {}

    def _claim(self, facts: IO[str]) -> None:
        """Write the made_from file; raise a UserError if another command has written rows."""
        if self._changed():
            for path in self._files():  # empty files of the other command
                path.unlink()
            facts.truncate(0)
            facts.write(json.dumps(self._made_from, indent=1) + "\n")
            facts.flush()
        self._claimed = True

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Append rows; raise a UserError if another command has started the same output in the meantime."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        with contextlib.nullcontext() if self._claimed else self._locked() as facts:
            if facts:
                self._claim(facts)
            with disk.with_filename(self.path), self.path.open("ab") as file:
                file.write(lines)
        self.done += len(records)

    def finish(self) -> bool:
        """Join the parts if this process is the last to end; return whether the output is complete."""
        with self._locked() as facts:
            self._claim(facts)
            if self.parts > 1 and self.output.exists():
                return False
            self.path.touch()
            if self.parts > 1 and not self._join():
                return False
        self.total = _count(self.output)
        return True

    def _join(self) -> bool:
        """Join all parts to the output; return False if some are not complete yet."""
        _done(self.path).touch()
        paths = [self._part(number) for number in range(self.parts)]
        if not all(_done(path).exists() for path in paths):
            return False
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in paths]
            whole = stack.enter_context(disk.atomic_file(self.output))
            for lines in itertools.zip_longest(*files, fillvalue=b""):
                whole.writelines(lines)
        for path in paths:
            path.unlink()
            _done(path).unlink()
        return True


def _done(path: pathlib.Path) -> pathlib.Path:
    """Return the path of the marker of a complete part."""
    return path.with_name(path.name + ".done")


def _count(path: pathlib.Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _whole_lines(path: pathlib.Path, batch: int) -> int:
    """Count the lines of a file in complete batches, and remove the rest, which may have been cut off when a process was killed.

    The last bits of an output may depend on the other rows of its batch. Resuming at a batch makes the output the same as without
    the interruption.
    """
    if not path.exists():
        return 0
    ends = [0]
    with path.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
        lines = (len(ends) - 1) // batch * batch
        file.truncate(ends[lines])
    return lines


if __name__ == "__main__":
    cli.start(main)

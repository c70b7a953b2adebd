r"""`python -m lm_research.generate --model PATH --prompt TEXT`: texts from a model, on any way of decoding.

    ... --prompt "Once upon a time" --do_sample --temperature 0.8 --seed 1     one text, as it comes
    ... --input FILE [--output FILE.jsonl]     one prompt a line (or {"prompt": TEXT} of .jsonl), in batches
    ... --prompt TEXT --num_beams 4 --num_return_sequences 4
    ... --prompt TEXT --num_beams 6 --num_beam_groups 3 --diversity_penalty 0.5 --num_return_sequences 3     diverse beams
    ... --prompt TEXT --num_beams 6 --force_words '[" river"]'     a text with these words in it
    ... --prompt TEXT --penalty_alpha 0.6 --top_k 4     contrastive search
    ... --prompt TEXT --assistant_model SMALLER     a smaller model with the same tokens drafts (speculative decoding)
    ...     without prompts: a conversation on a terminal, or prompts on standard input

The model is a directory in the Hugging Face format, a native one, or that of a training run. Every argument of
`LanguageModel.generate` is a flag with its name, see below, lists written as JSON: --stop_strings '["\n\n"]'.
Encoder-decoders read the prompt and answer it. A conversation goes through the model's chat template, if it has one; else
it goes on with all that was said.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import io
import json
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from lm_research import cli
from lm_research.common import disk
from lm_research.common.documents import json_value
from lm_research.common.flags import Parser, bounded, path_text
from lm_research.common.lines import end_at_line_feed
from lm_research.common.paths import path_of
from lm_research.common.streams import failure
from lm_research.data.sources.files import source_file
from lm_research.data.sources.problems import Problems
from lm_research.data.sources.text import read_lines
from lm_research.errors import DataError, UserError, suggest

Message = dict[str, str]
NEW_TOKENS = 64  # where nothing says how many
HELP = "Empty line: forget what was said. Ctrl-D: end."


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    asks = {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="python -m lm_research.generate",
        description=__doc__,
        epilog=decoding_help() if asks else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        required=True,
        type=path_text,
        help="a Hugging Face directory, a native one, or a run directory",
    )
    parser.add_argument("--prompt", action="append", help="text to continue or answer; may be given several times")
    parser.add_argument(
        "--input", type=path_text, help="file with one prompt a line, or .jsonl with objects that have a prompt"
    )
    parser.add_argument("--output", type=path_text, help="file to write, a JSON object a text: prompt, text, tokens")
    parser.add_argument(
        "--batch_size", type=bounded(int, 1, 2**20), default=8, help="prompts of --input that run together (8)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type of parameters and computation"
    )
    parser.add_argument("--mesh", help="devices to divide the model over, such as fsdp=4,tensor=2 (one device)")
    parser.add_argument("--assistant_model", type=path_text, help="directory of a model that drafts")
    parser.add_argument("--force_words", help="JSON list of texts that must occur, instead of force_words_ids")
    parser.add_argument("--system", help="what a conversation begins with, for models with a chat template")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
    return cli.parsed(parser, run, argv, rest=True)


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Does what the arguments say; `rest` are flags of decoding.

    Raises:
      UserError: see the message.
    """
    if args.prompt and args.input:
        raise UserError("--prompt and --input are both given. Keep one of them.")
    arguments, prompts = flags(rest), args.prompt
    if args.input:
        prompts = read_prompts(args.input)
        if not prompts:
            raise DataError(f"--input={args.input} holds no prompts. Write one a line.")
    if args.output:
        if not prompts:
            raise UserError("--output needs prompts: give --prompt or --input.")
        check_output(args.output)
    from lm_research.pretrained import from_pretrained  # after the arguments are checked: models take long to load

    lm = from_pretrained(args.model, dtype=args.dtype, mesh=args.mesh)
    if lm.tokenizer is None:
        raise UserError(f"{args.model} holds no tokenizer, so it can't read prompts. Put its files beside the model's.")
    if args.assistant_model:
        arguments["assistant_model"] = from_pretrained(args.assistant_model, dtype=args.dtype, mesh=args.mesh)
    if args.force_words:
        arguments["force_words_ids"] = forced(lm, args.force_words)
    if not {"max_new_tokens", "max_length"} & (set(arguments) | set(lm.generation_config)):
        arguments["max_new_tokens"] = NEW_TOKENS
    if args.input or len(prompts or ()) > 1 or args.output or (prompts and not streams(arguments)):
        with disk.with_filename(args.output or ""), open_output(args.output) if args.output else _Standard() as file:
            write_texts(lm, prompts, arguments, args.batch_size, file, as_json=bool(args.output))
    elif prompts:
        say(lm, prompts[0], arguments)
    elif sys.stdin.isatty():
        talk(lm, arguments, typed(sys.stdin), args.system)
    else:
        write_texts(lm, typed(sys.stdin), arguments, args.batch_size, sys.stdout, as_json=False)


class _Standard:
    """Standard output as a context that does not close it."""

    def __enter__(self) -> TextIO:
        return sys.stdout

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()


def check_output(path: str) -> None:
    """Raises a DataError if a file cannot be written, without touching it."""
    place = pathlib.Path(path)
    folder = place.absolute().parent
    reason = (
        "it is a directory"
        if place.is_dir()
        else f"there is no directory {folder}"
        if not folder.is_dir()
        else ""
        if os.access(place if place.exists() else folder, os.W_OK)
        else "no permission"
    )
    if reason:
        raise DataError(f"--output={path} cannot be written: {reason}. Choose another file, or make its directory.")


def open_output(path: str) -> TextIO:
    """The file, empty; raises a DataError if it cannot be written."""
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"--output={path} cannot be written: {disk.describe_os_error(error, path)}. Choose another file, or fix that."
        ) from error


def flags(rest: Sequence[str]) -> dict[str, Any]:
    """Arguments of `generate` from flags: `--name value`, `--name=value`, `--name` for True; dashes count as underscores.

    Raises:
      UserError: no such flag, or a value of the wrong type.
    """
    from lm_research.decoding.generation_config import NAMES, check_types

    arguments: dict[str, Any] = {}
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"Unexpected argument {word!r}. A text with spaces needs quotes; --help shows the usage.")
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name not in NAMES:
            raise UserError(f"--{name} is no flag. {suggest(name, NAMES)}")
        if not equals and words and not words[0].startswith("--"):
            equals, value = "=", words.pop(0)
        arguments[name] = _value(value) if equals else True
    check_types({name: value for name, value in arguments.items() if value is not None}, "--")
    return arguments


def decoding_help() -> str:
    """What `--help` says about arguments of `generate`."""
    from lm_research.decoding.generation_config import GenerationConfig

    _, _, names = inspect.cleandoc(GenerationConfig.__doc__ or "").partition("Attributes:\n")
    defaults = [
        f"{field.name} {field.default}" for field in dataclasses.fields(GenerationConfig) if field.default is not None
    ]
    defaults.insert(0, f"max_new_tokens {NEW_TOKENS} (unless the model's files say)")
    return f"flags of decoding (logits_processors.py and sampling.py are in lm_research/decoding):\n{names}\ndefaults: {', '.join(defaults)}"


def forced(lm: Any, text: str) -> list[list[int]]:
    """force_words_ids of a JSON list of words; raises a UserError if it is none."""
    words = _value(text)
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise UserError(f"""--force_words={text} is no JSON list of texts, such as '["river", "old king"]'.""")
    return lm.tokenizer.encode_batch(words)


def _value(text: str) -> Any:
    try:
        return cli.json_word(text)
    except ValueError:
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def streams(arguments: dict[str, Any]) -> bool:
    """Whether there is one text, known token by token."""
    alone = arguments.get("num_return_sequences", 1) == 1 and arguments.get("num_beams", 1) == 1
    return alone and not arguments.get("penalty_alpha") and "assistant_model" not in arguments


def say(lm: Any, prompt: str | list[list[int]], arguments: dict[str, Any]) -> str:
    """Prints the text after a prompt, or its token ids, as it comes, and returns it."""
    text = ""

    # All ids of a conversation are read, padding among them if a template has it.
    def read(ids: list[list[int]]) -> dict[str, Any]:
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}

    given = {"prompts": prompt} if isinstance(prompt, str) else read(prompt)
    pieces = lm.stream(**given, **arguments) if streams(arguments) else whole(lm, given, arguments)
    for piece in pieces:
        print(piece, end="", flush=True)
        text += piece
    print()
    return text


def whole(lm: Any, given: dict[str, Any], arguments: dict[str, Any]) -> list[str]:
    """The best text on ways of decoding that know it at the end."""
    return lm.generate(**given, **{**arguments, "return_dict_in_generate": True}).texts[:1]


def talk(lm: Any, arguments: dict[str, Any], lines: Iterable[str], system: str | None = None) -> None:
    """Answer lines until they end or Ctrl-C is pressed.

    An encoder-decoder answers each line alone; a decoder follows its chat template or, without one, continues the whole conversation.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _talk(lm, arguments, iter(lines), system)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _talk(lm: Any, arguments: dict[str, Any], lines: Iterator[str], system: str | None) -> None:
    from lm_research.tokenizers.chat_template import chat_ids, chat_template

    chats = chat_template(lm.tokenizer) is not None
    if system and not chats:
        raise UserError("--system is for models with a chat_template, which this one has not. Leave it out.")
    print(HELP, file=sys.stderr)
    begin: list[Message] = [{"role": "system", "content": system}] if system else []
    said, messages = "", list(begin)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = next(lines, None)
        if line is None:
            return
        if not line:
            said, messages = "", list(begin)
            continue
        try:
            if chats:
                messages.append({"role": "user", "content": line})
                answer = say(lm, [chat_ids(lm.tokenizer, messages)], arguments)
                messages.append({"role": "assistant", "content": answer})
            else:
                prompt = line if lm.definition.arch.kind == "encoder-decoder" else said + line
                said = prompt + say(lm, prompt, arguments) + "\n"
        except UserError as error:  # such as a conversation that has grown too long
            cli.print_error(str(error))
            said, messages = "", list(begin)


def typed(file: TextIO) -> Iterator[str]:
    """Lines without their ends; raises a DataError if they are not UTF-8."""
    if isinstance(file, io.TextIOWrapper):
        file.reconfigure(newline="\n")
    try:
        for number, line in enumerate(file):
            line = line if number else line.removeprefix("\ufeff")
            line.encode()  # where Python lets wrong bytes pass, as half characters
            yield end_at_line_feed(line).removesuffix("\n")
    except UnicodeError as error:
        raise DataError(f"Standard input is no text in UTF-8: {error}. Convert it, for example with iconv.") from error


def read_prompts(path: str) -> list[str]:
    """Prompts of a file: its lines that are not blank or, of .jsonl, the field "prompt" of each.

    Raises:
      DataError: it cannot be read, or a line of .jsonl has no prompt that is a text.
    """
    file, problems = source_file(path_of(path, "--input", error=DataError), path), Problems("stop")
    lines = [(number, line.removesuffix("\n")) for number, line in read_lines(file, problems) if line.strip()]
    if file.kind != "json":
        return [line for _, line in lines]
    prompts = []
    for number, line in lines:
        where = f"{path}, line {number}"
        try:
            prompt = json_value(line, on_surrogates=functools.partial(problems.halves, where))["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{where}: no JSON object with a "prompt". Fix or remove it.') from error
        if not isinstance(prompt, str):
            raise DataError(f"{where}: the prompt {str(prompt)[:80]} is no text. Put it in quotes.")
        prompts.append(prompt)
    problems.tell(path)
    return prompts


def write_texts(
    lm: Any, prompts: Iterable[str], arguments: dict[str, Any], batch_size: int, file: TextIO, as_json: bool
) -> None:
    """Writes the texts of prompts, batch after batch."""
    for batch in batches(prompts, batch_size):
        if file is sys.stdout and failure():
            return  # nobody reads it any more
        output = lm.generate(prompts=batch, **{**arguments, "return_dict_in_generate": True})
        copies = len(output.texts) // len(batch)
        for number, (text, tokens) in enumerate(zip(output.texts, output.new_tokens, strict=True)):
            record = {"prompt": batch[number // copies], "text": text, "tokens": len(tokens)}
            print(json.dumps(record, ensure_ascii=False) if as_json else text, file=file, flush=True)


def batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


if __name__ == "__main__":
    cli.start(main)

r"""`python -m lm_research.generate --model PATH --prompt TEXT`: generate text with any decoding strategy.

    ... --prompt "Once upon a time" --do_sample --temperature 0.8 --seed 1     one text, streamed
    ... --input FILE [--output FILE.jsonl]     one prompt per line (or {"prompt": TEXT} in .jsonl), in batches
    ... --prompt TEXT --num_beams 4 --num_return_sequences 4
    ... --prompt TEXT --num_beams 6 --num_beam_groups 3 --diversity_penalty 0.5 --num_return_sequences 3     diverse beams
    ... --prompt TEXT --num_beams 6 --force_words '[" river"]'     text that contains these words
    ... --prompt TEXT --penalty_alpha 0.6 --top_k 4     contrastive search
    ... --prompt TEXT --assistant_model SMALLER     speculative decoding: a smaller model with the same vocabulary drafts
    ...     without prompts: a conversation on a terminal, or prompts from standard input

The model is a directory in the Hugging Face format, in the native format, or of a training run. Every argument of
`LanguageModel.generate` is a flag of the same name (see below); lists are written as JSON: --stop_strings '["\n\n"]'.
Encoder-decoders encode the prompt and generate the answer. A conversation uses the model's chat template; without one, the model
continues the whole conversation as text.
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
from lm_research.common.bucket_copies import BucketCopy
from lm_research.common.documents import json_value
from lm_research.common.flags import Parser, bounded, path_text
from lm_research.common.lines import end_at_line_feed
from lm_research.common.paths import as_path, is_remote, path_of
from lm_research.common.streams import failure
from lm_research.data.sources.files import source_file
from lm_research.data.sources.problems import Problems
from lm_research.data.sources.text import read_lines
from lm_research.errors import DataError, UserError, suggest

Message = dict[str, str]
NEW_TOKENS = 64  # default of max_new_tokens
HELP = "Empty line: start a new conversation. Ctrl-D: end."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    needs_help = {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="python -m lm_research.generate",
        description=__doc__,
        epilog=decoding_help() if needs_help else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        required=True,
        type=path_text,
        help="model directory (in the Hugging Face format, in the native format, or of a run), or a .gguf file",
    )
    parser.add_argument("--prompt", action="append", help="text to continue or answer; may be repeated")
    parser.add_argument(
        "--input", type=path_text, help='file with one prompt per line, or .jsonl file of objects with a "prompt"'
    )
    parser.add_argument(
        "--output", type=path_text, help="file to write, with one JSON object per text: prompt, text, tokens"
    )
    parser.add_argument("--batch_size", type=bounded(int, 1, 2**20), default=8, help="prompts of --input per batch (8)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type of parameters and computation"
    )
    parser.add_argument("--mesh", help="mesh to divide the model over, such as fsdp=4,tensor=2 (one device)")
    parser.add_argument("--assistant_model", type=path_text, help="directory of the draft model")
    parser.add_argument("--force_words", help="JSON list of texts that must occur, instead of force_words_ids")
    parser.add_argument("--system", help="system message of the conversation, for models with a chat template")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return cli.parsed(parser, run, argv, rest=True)


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Generate as the arguments specify; `rest` are decoding flags.

    Raises:
      UserError: arguments conflict, or the model or the prompts cannot be used.
    """
    if args.prompt and args.input:
        raise UserError("--prompt and --input are both given. Keep one of them.")
    arguments, prompts = flags(rest), args.prompt
    if args.input:
        prompts = read_prompts(args.input)
        if not prompts:
            raise DataError(f"--input={args.input} contains no prompts. Write one per line.")
    if args.output:
        if not prompts:
            raise UserError("--output needs prompts: give --prompt or --input.")
        if is_remote(args.output):
            with BucketCopy.of_file(as_path(args.output)) as local:
                return _write(args, arguments, prompts, str(local))
        check_output(args.output)
    _write(args, arguments, prompts, args.output)


def _write(args: argparse.Namespace, arguments: dict[str, Any], prompts: Any, output: str | None) -> None:
    """Load the model, and write texts to `output` or talk."""
    from lm_research.pretrained import from_pretrained  # after the arguments are checked: models take long to load
    from lm_research.run.compile_cache import use_compile_cache

    use_compile_cache()
    lm = from_pretrained(args.model, dtype=args.dtype, mesh=args.mesh)
    if lm.tokenizer is None:
        raise UserError(
            f"{args.model} has no tokenizer, so it cannot read prompts. Add the tokenizer's files to the directory."
        )
    if args.assistant_model:
        arguments["assistant_model"] = from_pretrained(args.assistant_model, dtype=args.dtype, mesh=args.mesh)
    if args.force_words:
        arguments["force_words_ids"] = forced(lm, args.force_words)
    if not {"max_new_tokens", "max_length"} & (set(arguments) | set(lm.generation_config)):
        arguments["max_new_tokens"] = NEW_TOKENS
    if args.input or len(prompts or ()) > 1 or output or (prompts and not streams(arguments)):
        with disk.with_filename(output or ""), open_output(output) if output else _Standard() as file:
            write_texts(lm, prompts, arguments, args.batch_size, file, as_json=bool(output))
    elif prompts:
        print_text(lm, prompts[0], arguments)
    elif sys.stdin.isatty():
        talk(lm, arguments, typed(sys.stdin), args.system)
    else:
        write_texts(lm, typed(sys.stdin), arguments, args.batch_size, sys.stdout, as_json=False)


class _Standard:
    """Context manager for standard output that does not close it."""

    def __enter__(self) -> TextIO:
        return sys.stdout

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()


def check_output(path: str) -> None:
    """Raise a DataError if a file cannot be written, without changing it."""
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
    """Open a file for writing; raise a DataError if it cannot be written."""
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"--output={path} cannot be written: {disk.describe_os_error(error, path)}. Choose another file, or fix that."
        ) from error


def flags(rest: Sequence[str]) -> dict[str, Any]:
    """Parse flags into arguments of `generate`: `--name value`, `--name=value`, `--name` for True; dashes count as underscores.

    Raises:
      UserError: there is no such flag, or its value has the wrong type.
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
            raise UserError(f"--{name} is not a flag. {suggest(name, NAMES)}")
        if not equals and words and not words[0].startswith("--"):
            equals, value = "=", words.pop(0)
        arguments[name] = _value(value) if equals else True
    check_types({name: value for name, value in arguments.items() if value is not None}, "--")
    return arguments


def decoding_help() -> str:
    """Return the part of `--help` about arguments of `generate`."""
    from lm_research.decoding.generation_config import GenerationConfig

    _, _, names = inspect.cleandoc(GenerationConfig.__doc__ or "").partition("Attributes:\n")
    defaults = [
        f"{field.name} {field.default}" for field in dataclasses.fields(GenerationConfig) if field.default is not None
    ]
    defaults.insert(0, f"max_new_tokens {NEW_TOKENS} (unless the model's files set it)")
    return f"decoding flags (logits_processors.py and sampling.py are in lm_research/decoding):\n{names}\ndefaults: {', '.join(defaults)}"


def forced(lm: Any, text: str) -> list[list[int]]:
    """Convert a JSON list of words to force_words_ids; raise a UserError if it is not one."""
    words = _value(text)
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise UserError(f"""--force_words={text} is not a JSON list of texts, such as '["river", "old king"]'.""")
    return lm.tokenizer.encode_batch(words)


def _value(text: str) -> Any:
    try:
        return cli.json_word(text)
    except ValueError:
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def streams(arguments: dict[str, Any]) -> bool:
    """Return whether decoding yields a single text token by token."""
    single = arguments.get("num_return_sequences", 1) == 1 and arguments.get("num_beams", 1) == 1
    return single and not arguments.get("penalty_alpha") and "assistant_model" not in arguments


def print_text(lm: Any, prompt: str | list[list[int]], arguments: dict[str, Any]) -> str:
    """Generate from a prompt, or its token ids, print the text as it is decoded, and return it."""
    text = ""
    inputs: dict[str, Any] = {"prompts": prompt}
    if not isinstance(prompt, str):  # all ids of a conversation count, including padding in a template
        inputs = {"input_ids": prompt, "attention_mask": [[1] * len(row) for row in prompt]}
    pieces = lm.stream(**inputs, **arguments) if streams(arguments) else best_text(lm, inputs, arguments)
    for piece in pieces:
        print(piece, end="", flush=True)
        text += piece
    print()
    return text


def best_text(lm: Any, inputs: dict[str, Any], arguments: dict[str, Any]) -> list[str]:
    """Generate with a strategy that cannot stream, and return a list with the best text."""
    return lm.generate(**inputs, **{**arguments, "return_dict_in_generate": True}).texts[:1]


def talk(lm: Any, arguments: dict[str, Any], lines: Iterable[str], system: str | None = None) -> None:
    """Answer lines until they end or Ctrl-C is pressed.

    An encoder-decoder answers each line separately. A decoder uses its chat template or, without one, continues the whole conversation.
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
        raise UserError("--system is for models with a chat template, and this one has none. Remove it.")
    print(HELP, file=sys.stderr)
    begin: list[Message] = [{"role": "system", "content": system}] if system else []
    history, messages = "", list(begin)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = next(lines, None)
        if line is None:
            return
        if not line:
            history, messages = "", list(begin)
            continue
        try:
            if chats:
                messages.append({"role": "user", "content": line})
                answer = print_text(lm, [chat_ids(lm.tokenizer, messages)], arguments)
                messages.append({"role": "assistant", "content": answer})
            else:
                prompt = line if lm.definition.arch.kind == "encoder-decoder" else history + line
                history = prompt + print_text(lm, prompt, arguments) + "\n"
        except UserError as error:  # such as a conversation that has become too long
            cli.print_error(str(error))
            history, messages = "", list(begin)


def typed(file: TextIO) -> Iterator[str]:
    """Yield lines without line ends; raise a DataError if they are not UTF-8."""
    if isinstance(file, io.TextIOWrapper):
        file.reconfigure(newline="\n")
    try:
        for number, line in enumerate(file):
            line = line if number else line.removeprefix("\ufeff")
            line.encode()  # where Python lets wrong bytes pass, as half characters
            yield end_at_line_feed(line).removesuffix("\n")
    except UnicodeError as error:
        raise DataError(f"Standard input is not valid UTF-8: {error}. Convert it, for example with iconv.") from error


def read_prompts(path: str) -> list[str]:
    """Read the prompts of a file: its non-blank lines or, in a .jsonl file, their field "prompt".

    Raises:
      DataError: it cannot be read, or a line of .jsonl has no prompt that is a string.
    """
    file, problems = source_file(path_of(path, "--input", error=DataError), path), Problems("stop")
    lines = [(number, line.removesuffix("\n")) for number, line in read_lines(file, problems) if line.strip()]
    if file.kind != "json":
        return [line for _, line in lines]
    prompts = []
    for number, line in lines:
        where = f"{path}, line {number}"
        try:
            prompt = json_value(line, on_surrogates=functools.partial(problems.surrogates, where))["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{where}: not a JSON object with a "prompt". Fix or remove the line.') from error
        if not isinstance(prompt, str):
            raise DataError(f"{where}: the prompt {str(prompt)[:80]} is not a string. Put it in quotes.")
        prompts.append(prompt)
    problems.print_report(path)
    return prompts


def write_texts(
    lm: Any, prompts: Iterable[str], arguments: dict[str, Any], batch_size: int, file: TextIO, as_json: bool
) -> None:
    """Generate from prompts in batches and write the texts."""
    for batch in batches(prompts, batch_size):
        if file is sys.stdout and failure():
            return  # standard output is closed
        output = lm.generate(prompts=batch, **{**arguments, "return_dict_in_generate": True})
        copies = len(output.texts) // len(batch)
        for number, (text, tokens) in enumerate(zip(output.texts, output.new_tokens, strict=True)):
            record = {"prompt": batch[number // copies], "text": text, "tokens": len(tokens)}
            print(json.dumps(record, ensure_ascii=False) if as_json else text, file=file, flush=True)


def batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield lists of `size` items; the last may be shorter."""
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

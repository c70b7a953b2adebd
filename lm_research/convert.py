"""`python -m lm_research.convert --source DIR --output DIR --to {hf,native,peft}`: convert a model to another format.

The source is a directory in the Hugging Face format, in the native format, or of a training run (its newest checkpoint, with the
averaged parameters if it has them), RUN/checkpoints/STEP, or a GGUF file. Checkpoints of any number of processes and devices are merged, and
written in shards of --max-shard-gb. LoRA adapters are merged into the weights: those of a run, or those of --adapter, a directory in
the format of Hugging Face's peft. `--to peft` writes the adapters of a run separately instead. Arrays are copied bit for bit unless
--dtype sets another type. --average N averages the parameters of a run's last N checkpoints.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence

from lm_research import cli
from lm_research.common import flags
from lm_research.common.bucket_copies import BucketCopy
from lm_research.common.disk import reporting_disk_errors
from lm_research.common.paths import as_path
from lm_research.config.run_files import read_config
from lm_research.errors import PretrainedError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = flags.Parser(
        prog="python -m lm_research.convert", description="Convert a model directory from one format to another."
    )
    parser.add_argument(
        "--source",
        required=True,
        type=flags.path_text,
        help="model directory in the Hugging Face or native format, .gguf file, run directory, or RUN/checkpoints/STEP",
    )
    parser.add_argument("--output", required=True, type=flags.path_text, help="new or empty output directory")
    parser.add_argument("--to", required=True, choices=("hf", "native", "peft"), help="format to write")
    parser.add_argument("--head", help="head of the model, such as masked_lm or none (that of the source)")
    parser.add_argument(
        "--adapter",
        type=flags.path_text,
        help="directory in peft's format whose LoRA adapters are merged into the weights",
    )
    parser.add_argument(
        "--average",
        type=flags.bounded(int, 1, 1000),
        default=1,
        help="number of a run's last checkpoints whose parameters are averaged (1); the run needs --config.checkpoint.keep",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="type of the written arrays")
    parser.add_argument(
        "--max-shard-gb",
        type=flags.bounded(float, 1e-6, 1e6),
        default=5.0,
        help="hf: maximum size of a file of weights (5)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return cli.parsed(parser, convert, argv)


def convert(args: argparse.Namespace) -> None:
    """Convert a model as the arguments specify.

    Raises:
      PretrainedError: the source cannot be read, the output exists, or the format does not support the model.
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    output = as_path(args.output)
    with reporting_disk_errors(str, output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise PretrainedError(f"--output={output} exists and is not an empty directory. Choose a new one.")
    with BucketCopy(output) as copy, emptied_on_failure(copy.folder):
        write(args, copy.folder)


@contextlib.contextmanager
def emptied_on_failure(output: pathlib.Path) -> Iterator[None]:
    """Restore a missing or empty directory to that state if the body fails, so that the same command can be repeated."""
    existed = output.is_dir()
    try:
        yield
    except BaseException:
        for path in output.iterdir() if output.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if not existed and output.is_dir():
            output.rmdir()
        raise


def write(args: argparse.Namespace, output: pathlib.Path) -> None:
    """Convert the model and write it to `output`; see `convert`."""
    if args.to == "peft":
        write_adapters(args, output)
        return
    from lm_research.pretrained import average_checkpoints, from_pretrained  # after the checks: it loads JAX

    if args.average > 1:
        if args.adapter:
            raise PretrainedError("--average averages the checkpoints of a run, to which --adapter cannot be added.")
        lm = average_checkpoints(args.source, args.average, head=args.head, dtype=args.dtype)
    else:
        lm = from_pretrained(args.source, head=args.head, dtype=args.dtype, adapter=args.adapter)
    if args.to == "hf":
        lm.save_pretrained(output, max_shard_bytes=int(args.max_shard_gb * 1e9))
    else:
        lm.save_native(output)
    head = "" if lm.head == "none" else f" with head {lm.head}"
    print(f"{args.source} -> {args.output} ({args.to}): {lm.family}{head}, {lm.num_params:,} parameters")
    if lm.tokenizer is None:
        print("The source has no tokenizer, so the output has none either.")


def write_adapters(args: argparse.Namespace, output: pathlib.Path) -> None:
    """Write a run's adapters in peft's format; raise a PretrainedError if the source is not a run that trained adapters."""
    from lm_research.interop import native_checkpoint
    from lm_research.interop.peft_writer import write_adapter
    from lm_research.models.adapters import AdaptedDefinition

    source = as_path(args.source)
    found = native_checkpoint.inspect(source) if native_checkpoint.is_run(source) else None
    if found is None or not isinstance(found.stored, AdaptedDefinition):
        raise PretrainedError(
            f"--to peft writes the adapters of a run with lora.rank, but {source} is not such a run. Use --to hf or native."
        )
    if args.head or args.dtype or args.adapter or args.average > 1:
        raise PretrainedError(
            "--to peft writes adapters as they were trained. Remove --head, --dtype, --adapter and --average."
        )
    base = read_config(found.files / "config.json", PretrainedError)["train"]["init_from"]
    params, kind = native_checkpoint.load_adapted(found), found.config.get("model_type", "")
    write_adapter(output, found.stored, found.family, params, base, kind)
    print(f"{source} -> {args.output} (peft): adapters of rank {found.stored.lora.rank} for {base}")


if __name__ == "__main__":
    cli.start(main)

"""`python -m lm_research.port_check DIR [--reference FILE]`: compare a model with another implementation, layer by layer.

DIR is a model in the Hugging Face format. The reference, by default DIR/reference.npz, holds what the other implementation computes from
the same weights: the model's arguments as `inputs/NAME`, and its results as `outputs/NAME`: hidden_states [N + 1, B, L, D], attentions
[N, B, H, L, S], logits, losses; of encoder-decoders encoder_hidden_states, decoder_hidden_states and so on. docs/porting.md shows how to write one
with transformers. Both models run in float32. Positions that attention_mask hides are not compared.

The exit code is 0 if all results agree, 1 if one differs, and 2 for files that cannot be read.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm_research import cli
from lm_research.common import flags
from lm_research.errors import BUG, DONE, PretrainedError

Arrays = dict[str, np.ndarray]

_DIFFERENT = BUG  # 1, as `cmp` and `diff` return
REFERENCE = "reference.npz"
_STACKS = ("encoder_", "decoder_", "")  # prefixes of results, in the order of computation
_FINAL = ("last_hidden_state", "pooler_output", "logits")


# Results -> what they are computed with after the results before them.
_PARTS = {
    "embeddings": "the tables of tokens, positions and token types, their scales and their norm",
    "attentions": "the norm before attention, queries and keys with their biases and norms, positions, the mask, or the scale of scores",
    "cross_attentions": "the norm before cross-attention, its queries and keys, or the mask of the source",
    "hidden_states": "values, the output projection, norms with their epsilon, the order of the branches, or the feed-forward layer "
    "(its gate, activation and biases)",
    "logits": "the head: the table that it is tied to, its bias, or a factor or cap on logits",
    "loss": "which labels are shifted or ignored, and what is averaged",
}


class Result(NamedTuple):
    """A result that both implementations have.

    Attributes:
      what: its description.
      difference: the largest difference relative to the reference's scale.
      kind: a key of _PARTS, or another result's name.
    """

    what: str
    difference: float
    kind: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = flags.Parser(
        prog="python -m lm_research.port_check",
        description="Compare a model layer by layer with the results of another implementation.",
    )
    parser.add_argument("directory", type=flags.path, metavar="DIR", help="a model in the Hugging Face format")
    parser.add_argument("--reference", type=flags.path, metavar="FILE", help=f"the reference (DIR/{REFERENCE})")
    parser.add_argument(
        "--tolerance",
        type=flags.bounded(float, 0.0, 1.0),
        default=1e-5,
        help="largest difference that counts as equal, as a fraction of the result's largest value (1e-5)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")

    def check(arguments: argparse.Namespace) -> int:
        reference = arguments.reference or arguments.directory / REFERENCE
        results = list(compare(arguments.directory, reference))
        for what, difference, _ in results:
            print(f"{'ok    ' if difference <= arguments.tolerance else 'DIFFERS'} {difference:9.2e}  {what}")
        print("\n" + verdict(results, arguments.tolerance))
        return DONE if all(difference <= arguments.tolerance for _, difference, _ in results) else _DIFFERENT

    return cli.parsed(parser, check, argv)


def verdict(results: Sequence[Result], tolerance: float) -> str:
    """Sentences that name the first result that differs, and the parts that it depends on."""
    first = next((result for result in results if not result.difference <= tolerance), None)
    if first is None:
        return f"All {len(results)} results agree to {tolerance:g} of their scale."
    parts = _PARTS.get(first.kind, "what computes it from them")
    if first.kind == "hidden_states" and not any(result.kind == "attentions" for result in results):
        parts = f"{_PARTS['attentions']}; {parts}. A reference with attentions would narrow it down"
    return f"The first difference is in {first.what}. All results before it agree, so compare {parts}."


def compare(directory: Path, reference: Path) -> Iterator[Result]:
    """Compare all results that a reference has, in the order in which the model computes them.

    Args:
      directory: a model in the Hugging Face format.
      reference: an npz file, as described above.

    Raises:
      PretrainedError: the model or the reference cannot be read, or a result has another shape or is missing.
    """
    inputs, expected = read_reference(reference)
    found = run(directory, inputs, expected)
    for name, value in ordered(expected):
        if name not in found:
            raise PretrainedError(f"{reference}: the model has no result {name!r}. It has {', '.join(sorted(found))}.")
        ours = np.asarray(found[name], np.float32)
        if ours.shape != value.shape:
            raise PretrainedError(
                f"{reference}: outputs/{name} has shape {value.shape}, but the model's is {ours.shape}. Both must be computed "
                "from the same config.json."
            )
    yield from _results(expected, found, inputs)


def read_reference(path: Path) -> tuple[Arrays, Arrays]:
    """Read the inputs and outputs of a reference.

    Raises:
      PretrainedError: the file cannot be read, or is not a reference.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)[:200]
        raise PretrainedError(
            f"{path} cannot be read as an npz file: {reason}. Write the reference as docs/porting.md describes."
        ) from error
    groups: dict[str, Arrays] = {"inputs": {}, "outputs": {}}
    for key, value in arrays.items():
        group, _, name = key.partition("/")
        if group in groups and name:
            groups[group][name] = value
    for group, content in groups.items():
        if not content:
            raise PretrainedError(f"{path} has no array named {group}/..., but {', '.join(sorted(arrays)) or 'none'}.")
    return groups["inputs"], groups["outputs"]


def run(directory: Path, inputs: Arrays, expected: Arrays) -> dict[str, Any]:
    """Run the model of a directory on inputs, and capture hidden states and attentions if they are expected."""
    from lm_research.pretrained import from_pretrained  # after the arguments are checked: it loads JAX

    lm = from_pretrained(directory, dtype="float32")
    for line in lm.report.lines():
        print(f"note: {line}")
    capture = any(name.endswith(("hidden_states", "attentions")) for name in expected)
    return lm(**inputs, output_hidden_states=capture, output_attentions=capture)


def ordered(expected: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    """Results in the order of computation: of each stack its layers, then what is computed from the last one."""
    order = [f"{stack}{kind}" for stack in _STACKS for kind in ("hidden_states", "attentions")]
    order += ["cross_attentions", "encoder_last_hidden_state", *_FINAL]
    places = {name: place for place, name in enumerate(order)}
    yield from sorted(expected.items(), key=lambda item: (places.get(item[0], len(places)), item[0]))


def _results(expected: Arrays, found: Mapping[str, Any], inputs: Arrays) -> Iterator[Result]:
    layered = ("hidden_states", "attentions")
    for stack in _STACKS:
        states, probs = (f"{stack}{kind}" for kind in layered)
        crossed = "cross_attentions" if stack == "decoder_" else ""
        layers = max(
            (len(expected[name]) - (name == states) for name in (states, probs) if name in expected), default=-1
        )
        where = f"the {stack[:-1]}'s " if stack else ""
        for layer in range(-1, layers):
            for name in filter(None, (probs, crossed)) if layer >= 0 else ():
                if name in expected:
                    kind = name.removeprefix(stack).replace("_", "-").removesuffix("s")
                    yield _result(
                        f"the {kind} probabilities of {where}layer {layer}", name, layer, expected, found, inputs
                    )
            if states in expected:
                last = " (after the final norm, if there is one)" if layer == layers - 1 else ""
                what = f"{where or 'the '}embeddings" if layer < 0 else f"the output of {where}layer {layer}{last}"
                yield _result(what, states, layer + 1, expected, found, inputs)
    for name, _ in ordered(expected):
        if not name.endswith(layered):
            yield _result(name, name, None, expected, found, inputs)


def _result(
    what: str, name: str, row: int | None, expected: Arrays, found: Mapping[str, Any], inputs: Arrays
) -> Result:
    theirs, ours = (
        np.asarray(arrays[name] if row is None else arrays[name][row], np.float32) for arrays in (expected, found)
    )
    decoder = "decoder_input_ids" in inputs and not name.startswith("encoder_")
    mask = inputs.get("decoder_attention_mask" if decoder else "attention_mask")
    axis = 2 if name.endswith("attentions") else 1  # of attentions [B, H, L, S], the queries
    real = np.ones((1,) * theirs.ndim, bool)
    if mask is not None and theirs.ndim > axis and (theirs.shape[0], theirs.shape[axis]) == mask.shape:
        real = (mask > 0).reshape([mask.shape[0], *(mask.shape[1] if n == axis else 1 for n in range(1, theirs.ndim))])
    scale = float(np.abs(theirs * real).max()) or 1.0
    difference = np.abs(theirs - ours) * real
    start = row == 0 and name.endswith("hidden_states")
    kind = "embeddings" if start else name.removeprefix("encoder_").removeprefix("decoder_")
    return Result(what, float("inf") if np.isnan(difference).any() else float(difference.max()) / scale, kind)


if __name__ == "__main__":
    cli.start(main)

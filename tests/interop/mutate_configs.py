"""Every key of every family's config.json with every wrong value, through the entry points of the library: `python mutate_configs.py [FAMILY ...]`.

A case is good if the model is read, written and run, or if a PretrainedError names the file and the key. It prints the others, the slowest
case and the growth of memory. tests/interop/test_broken_configs.py runs a sample.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import pathlib
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np

import lm_research
from helpers import golden_models
from lm_research.decoding.generation_config import make_options
from lm_research.errors import PretrainedError, UserError
from lm_research.interop.model_directories import inspect
from lm_research.run.init_checkpoint import InitCheckpoint

# As written in JSON.
VALUES = (
    '"x"',
    '""',
    "0.5",
    "-1.5",
    "true",
    "false",
    "-1",
    "0",
    "1",
    "3",
    "2147483647",
    "2147483648",
    "1099511627776",
    "1e400",
    "-1e400",
    "NaN",
    "1e-320",
    "[]",
    "[1]",
    "{}",
    '{"a": 1}',
    '{"0": "a", "5": "b"}',
    '{"0": "a", "00": "b"}',
    "null",
    "[[[1], []]]",
    '"' + "y" * 100_000 + '"',
    "9" * 400,
    '["x", 1]',
    '"\\ud800"',
    '{"x": null, "rope_type": "linear", "factor": 0}',
)
KEYS = (
    "model_type",
    "architectures",
    "num_labels",
    "id2label",
    "label2id",
    "problem_type",
    "task_specific_params",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "quantization_config",
    "tie_word_embeddings",
    "is_decoder",
    "is_encoder_decoder",
    "add_cross_attention",
    "max_length",
    "n_ctx",
    "encoder",
    "decoder",
    "text_config",
    "torch_dtype",
)
LLAMA = (
    "layer_types",
    "rope_scaling",
    "rope_parameters",
    "rope_theta",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
)
SECONDS, MEGABYTES = 20, 1500


def keys_of(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Paths to the keys of a config.json, including those of nested objects."""
    more = LLAMA if "num_key_value_heads" in config else ()
    for key in dict.fromkeys((*config, *KEYS, *more)):
        yield (key,)
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ((key, inner) for inner in value)


def mutated(text: str, way: tuple[str, ...], value: str) -> str:
    """Return the text of a config.json with another value, given as JSON."""
    config = json.loads(text)
    place = config
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = "@VALUE@"
    return json.dumps(config).replace('"@VALUE@"', value)


@contextlib.contextmanager
def seconds(limit: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {limit} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)


def doors(directory: pathlib.Path, run: bool = True) -> None:
    """Read a model the way a run and the commands do."""
    inspect(directory, None)
    lm = lm_research.from_pretrained(directory)
    _ = lm.config.to_dict(), lm.context_length
    with tempfile.TemporaryDirectory() as output:
        lm.save_pretrained(output)
    make_options({}, lm.generation_config, lm._config)
    InitCheckpoint(directory, _model_section(), lm.head)
    if run:
        rank = (1, 2, 4) if lm.head == "multiple_choice" else (1, 4)
        ids = np.ones(rank, np.int32) * 3
        both = {"decoder_input_ids": ids} if lm.definition.arch.kind == "encoder-decoder" else {}
        outputs = lm(input_ids=ids, **both)
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in outputs.values() if hasattr(leaf, "shape")), "NaN"


def _model_section() -> Any:
    from lm_research.config import ModelConfig

    return ModelConfig()


def main() -> None:
    families = sys.argv[1:]
    goldens = {}
    for path in sorted(golden_models.FOLDER.glob("*.npz")):
        golden = golden_models.load_golden(path)
        config = json.loads(golden.config)
        goldens.setdefault(
            (golden.family, config.get("architectures", [""])[0]) if "pair" not in path.stem else (path.stem,), golden
        )
    chosen = {key: golden for key, golden in goldens.items() if not families or key[0] in families}
    counts, seen = collections.Counter(), set()
    logging.getLogger("lm_research").setLevel(logging.ERROR)
    for key, golden in chosen.items():
        first = key[0] not in seen  # for further classes of a family only the keys that concern the head
        if not first and "Sequence" not in key[-1]:
            continue
        seen.add(key[0])
        with tempfile.TemporaryDirectory() as folder:
            directory = pathlib.Path(folder)
            golden_models.write_checkpoint(directory, golden)
            for way in keys_of(json.loads(golden.config)):
                if first or way[0] in KEYS[:6]:
                    for value in VALUES:
                        counts[case(directory, golden.config, key, way, value)] += 1
    print(dict(counts))


def case(directory: pathlib.Path, text: str, key: Any, way: tuple[str, ...], value: str) -> str:
    (directory / "config.json").write_text(mutated(text, way, value))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        with seconds(SECONDS):
            doors(directory, run=value in ("null", "0", "3", "0.5", "1e-320"))
        outcome = "read"
    except UserError as error:
        said = str(error)
        outcome = "refused"
        if (
            len(said) > 1200
            or "\n" in said
            or way[-1] not in said
            or "config.json" not in said
            or not isinstance(error, PretrainedError)
        ):
            outcome = "refused otherwise"
            print(f"~ {key} {'.'.join(way)} = {value[:40]}: {type(error).__name__}: {said[:300]}", flush=True)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = "TRACEBACK"
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(
            f"! {key} {'.'.join(way)} = {value[:40]}: {type(error).__name__}: {str(error)[:200]} ({where.filename[-40:]}:{where.lineno})",
            flush=True,
        )
    took, grown = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if took > 5 or grown > 200_000:
        print(f"* {key} {'.'.join(way)} = {value[:40]}: {took:.1f} s, {grown // 1000} MB more", flush=True)
    return outcome


if __name__ == "__main__":
    main()

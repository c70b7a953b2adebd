"""Model directories of any format, on this machine or in a bucket."""

from __future__ import annotations

import os
import pathlib

from jax.sharding import Mesh

from lm_research.common.bucket_copies import fetched, naming
from lm_research.common.disk import reporting_disk_errors
from lm_research.common.paths import as_path, is_remote
from lm_research.errors import PretrainedError
from lm_research.interop import huggingface, native_checkpoint
from lm_research.interop.weight_reader import Report
from lm_research.models.definition import Params

StoredModel = huggingface.Pretrained | native_checkpoint.Native


def inspect(
    directory: pathlib.Path,
    head: str | None = None,
    num_labels: int | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> StoredModel:
    """Read the model's description from a directory of any format, without its parameters; raises PretrainedError."""
    if not is_remote(directory):
        return _inspect(directory, head, num_labels, adapter)
    with reporting_disk_errors(str, directory):
        place = directory if native_checkpoint.is_run(directory) else fetched(directory)
        with naming(directory, place):
            return _inspect(place, head, num_labels, adapter)


def _inspect(
    directory: pathlib.Path, head: str | None, num_labels: int | None, adapter: str | os.PathLike[str] | None
) -> StoredModel:
    if not (native_checkpoint.is_native(directory) or native_checkpoint.is_run(directory)):
        return huggingface.inspect(directory, head, num_labels, None if adapter is None else fetched(as_path(adapter)))
    if adapter is not None:
        raise PretrainedError(
            f"{directory} is in the native format, to which peft adapters cannot be added. Convert it with convert --to hf first."
        )
    return native_checkpoint.inspect(directory, head, num_labels)


def load_params(
    stored: StoredModel, mesh: Mesh | None, dtype: str | None, seed: int, fresh_head: bool
) -> tuple[Params, Report]:
    """Load parameters; see interop.huggingface.load_params. The native format ignores `fresh_head`, as it records the head."""
    if isinstance(stored, native_checkpoint.Native):
        return native_checkpoint.load_params(stored, mesh, dtype, seed)
    return huggingface.load_params(stored, mesh, dtype, seed, fresh_head)

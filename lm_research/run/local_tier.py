"""Emergency checkpoints on the hosts themselves: frequent, and fast to restore; those of the run directory are rarer and outlive the hosts.

Every `checkpoint.local_every_steps` steps each process writes its shards of the state into `checkpoint.local_directory`, which may be in memory
(/dev/shm) or on a local disk, and sends to the next process those that it does not hold itself. So a run that restarts on the same hosts, or
with one host replaced, continues from there, if that is newer than the newest checkpoint of the run directory. Orbax's emergency checkpoints
need a replica of the whole state on other hosts; this works for states that are divided over all hosts, too. A file belongs to a run
directory's id, not to a process: after a restart, each process takes the shards that it needs from wherever they are.

A step is complete once each process has written it and its neighbor has taken it. Only then are older ones removed. Shards have checksums; a
step that is incomplete, damaged or of another mesh is passed over.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import pathlib
import shutil
import uuid
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.common.disk import DiskError
from lm_research.errors import CheckpointError
from lm_research.parallel import exchange, processes
from lm_research.run import local_shards
from lm_research.run.checkpoint_snapshot import own_arrays
from lm_research.run.local_shards import Key, Place
from lm_research.training.state import State
from lm_research.trees import flatten, unflatten

RUN_ID = "local_checkpoints.json"  # in the run directory


class LocalTier:
    """The emergency checkpoints of a run, in all its processes.

    Attributes:
      step: the newest that this start of the run wrote, or began to write, or resumed from; 0 if none.
    """

    def __init__(
        self, directory: str, workdir: pathlib.Path, log: Callable[[str], None], before: Callable[[float], None]
    ) -> None:
        """Open them; all processes must call this.

        Args:
          directory: of this host's memory or disk.
          workdir: the run directory.
          log: for warnings.
          before: as for `Checkpoints`, with the seconds for which it may try again; a step is written even if it fails.

        Raises:
          CheckpointError: this host's directory cannot be written.
        """
        number = jax.process_index()
        run = exchange.share_texts("local/run", _run_id(workdir) if number == 0 else "")[0]
        self._before = before
        self._log, self._root = log, pathlib.Path(directory).expanduser().absolute() / run
        self._folder = self._root / str(number)  # processes may share a host
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"config.checkpoint.local_directory={directory} cannot be written: {error.strerror}. Choose a directory of each host's memory "
                "or disk."
            ) from error
        self._server = local_shards.ShardServer(self._folder)
        address = [processes.own_host(), self._server.port, self._server.token]
        self._addresses = [json.loads(text) for text in exchange.share_texts("local/address", json.dumps(address))]
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "local checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None
        self.step = 0
        self._buffers: dict[Key, np.ndarray] = {}
        self._count = 0  # of the times that processes looked for steps together

    def save(self, state: State, manifest: dict[str, Any]) -> None:
        """Copy this process's shards of a state, and write them in a thread. All processes must call this."""
        self.finish()
        arrays = flatten(state)
        for x in arrays.values():
            x.copy_to_host_async()
        shards: dict[Key, np.ndarray] = {}
        for path, x in arrays.items():
            for shard in x.addressable_shards:
                key = (path, _span(shard.index, x.shape))
                if key not in shards:
                    shards[key] = self._copy(key, np.asarray(shard.data))
        neighbor = (jax.process_index() + 1) % jax.process_count()
        theirs = _needed({path: (x.shape, x.sharding) for path, x in arrays.items()}, neighbor)
        self.step = int(state["step"])
        self._writing = self._thread.submit(self._write, self.step, manifest, shards, theirs, neighbor)

    def _copy(self, key: Key, values: np.ndarray) -> np.ndarray:
        """Copy a shard into the memory of the last copy."""
        if key not in self._buffers:
            self._buffers[key] = np.empty_like(values)
        np.copyto(self._buffers[key], values)
        return self._buffers[key]

    def _write(
        self, step: int, manifest: dict[str, Any], shards: dict[Key, np.ndarray], theirs: set[Key], neighbor: int
    ) -> None:
        number = jax.process_index()
        with contextlib.suppress(DiskError):  # of a bucket; a later step may succeed
            self._before(0.0)
        local_shards.write(self._folder / str(step) / str(number), local_shards.pack(manifest, shards))
        missing = {key: values for key, values in shards.items() if key not in theirs}
        if missing:
            local_shards.send(self._addresses[neighbor], step, number, local_shards.pack(manifest, missing))

    def finish(self) -> None:
        """Wait for the step that is being written, and remove those before it once it is complete. All processes must call this."""
        if self._writing is None:
            return
        try:
            self._writing.result()
            problem = ""
        except OSError as error:
            problem = str(error)
            self._log(f"WARNING: the local checkpoint of step {self.step} cannot be written: {problem}")
        self._writing = None
        complete = exchange.all_processes(not problem)
        for folder in self._root.glob("*/*"):
            if folder.name.isdecimal() and (
                (int(folder.name) < self.step) if complete else folder.name == str(self.step)
            ):
                shutil.rmtree(folder, ignore_errors=True)

    def restore(
        self, shapes: State, shardings: State, newer_than: int, corpus: bytes | None
    ) -> tuple[State, dict[str, Any]] | None:
        """Restore the newest complete step after `newer_than`, and its manifest; None if there is none. All processes must call this.

        Args:
          shapes: of the arrays.
          shardings: of the arrays.
          newer_than: the step of the newest checkpoint of the run directory.
          corpus: the description of the run's text, which must be the same as when the step was written.
        """
        manifests, places = self._find(corpus)
        self._server.places = places
        self._count += 1
        mine = json.dumps({step: [list(key) for key in found] for step, found in places.items()})
        held = [
            {int(step): {_key(key) for key in keys} for step, keys in json.loads(text).items()}
            for text in exchange.share_texts(f"local/found/{self._count}", mine)
        ]
        wanted = {
            path: (x.shape, s)
            for (path, x), s in zip(flatten(shapes).items(), flatten(shardings).values(), strict=True)
        }
        for step in sorted({step for found in held for step in found if step > newer_than}, reverse=True):
            everyone: set[Key] = set().union(*(found.get(step, set()) for found in held))
            complete = all(_needed(wanted, process) <= everyone for process in range(jax.process_count()))
            state = self._read(step, wanted, shapes, places.get(step, {}), held) if complete else None
            if exchange.all_processes(state is not None):
                texts = exchange.share_texts(f"local/manifest/{self._count}/{step}", json.dumps(manifests.get(step)))
                manifest = next(found for text in texts if (found := json.loads(text)) is not None)
                assert state is not None
                self.step = step
                return own_arrays(unflatten(state)), manifest
            self._log(
                f"WARNING: the local checkpoint of step {step} is {'damaged' if complete else 'incomplete, or of another mesh'}, and not used."
            )
        return None

    def _find(self, corpus: bytes | None) -> tuple[dict[int, dict[str, Any]], dict[int, dict[Key, Place]]]:
        """Find the steps on this host: the manifest and the shards of each."""
        manifests: dict[int, dict[str, Any]] = {}
        places: dict[int, dict[Key, Place]] = {}
        for path in sorted(self._root.glob("*/*/*")):
            manifest, found = local_shards.read_header(path)
            if path.parent.name.isdecimal() and found and manifest["corpus"] == _digest(corpus):
                manifests[int(path.parent.name)] = manifest
                places.setdefault(int(path.parent.name), {}).update(found)
        return manifests, places

    def _read(
        self,
        step: int,
        wanted: dict[str, Any],
        shapes: State,
        places: dict[Key, Place],
        held: list[dict[int, set[Key]]],
    ) -> dict[str, jax.Array] | None:
        """Make the arrays of this process; None if a shard is damaged wherever it lies."""
        arrays: dict[str, jax.Array] = {}
        types = flatten(shapes)
        for path, (shape, sharding) in wanted.items():
            parts: list[jax.Array] = []
            read: dict[Key, bytes] = {}
            for device, index in sharding.addressable_devices_indices_map(shape).items():
                key = (path, _span(index, shape))
                content = read[key] if key in read else self._shard(step, key, places, held)
                if content is None:
                    return None
                read[key] = content
                values = np.frombuffer(content, types[path].dtype).reshape([stop - start for start, stop in key[1]])
                parts.append(jax.device_put(values, device))
            arrays[path] = jax.make_array_from_single_device_arrays(shape, sharding, parts)
        return arrays

    def _shard(self, step: int, key: Key, places: dict[Key, Place], held: list[dict[int, set[Key]]]) -> bytes | None:
        """Read a shard from this host, or else from another one."""
        content = places[key].read() if key in places else None
        for number, found in enumerate(held):
            if content is None and number != jax.process_index() and key in found.get(step, ()):
                content = local_shards.receive(self._addresses[number], step, key)
        return content

    def drop(self, above: int) -> None:
        """Remove the steps after one. All processes must call this."""
        self.finish()
        for folder in self._root.glob("*/*"):
            if folder.name.isdecimal() and int(folder.name) > above:
                shutil.rmtree(folder, ignore_errors=True)

    def close(self, saved: bool) -> None:
        """Stop; if all is `saved` in the run directory, remove what is here. All processes must call this."""
        self.finish()
        exchange.all_processes(True)  # no neighbor is still sending
        self._thread.shutdown()
        self._server.close()
        if saved:
            shutil.rmtree(self._root, ignore_errors=True)


def _run_id(workdir: pathlib.Path) -> str:
    """Return the id of a run directory, which a new one gets here; one that cannot be read at the moment is not replaced."""
    path = workdir / RUN_ID
    try:
        return str(uuid.UUID(json.loads(path.read_text())["id"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        path.write_text(json.dumps({"id": str(uuid.uuid4())}) + "\n")
        return str(uuid.UUID(json.loads(path.read_text())["id"]))


def _digest(corpus: bytes | None) -> str:
    return hashlib.sha256(corpus or b"").hexdigest()


def describe(corpus: bytes | None, manifest: dict[str, Any]) -> dict[str, Any]:
    """Make the manifest of a step."""
    return {**manifest, "corpus": _digest(corpus)}


def _key(key: list[Any]) -> Key:
    return key[0], tuple((start, stop) for start, stop in key[1])


def _span(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _needed(arrays: dict[str, Any], process: int) -> set[Key]:
    """The shards of a process's devices."""
    return {
        (path, _span(index, shape))
        for path, (shape, sharding) in arrays.items()
        for device, index in sharding.devices_indices_map(shape).items()
        if device.process_index == process
    }


def halted(sharding: Any) -> jax.Array:
    """Make the entry of a state that is not stored."""
    return jax.device_put(jnp.full((), -1, jnp.int32), sharding)

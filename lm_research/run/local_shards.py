"""Shards of a state in files of a host's own memory or disk, and their way to another host.

A file has a line of JSON, padded to a multiple of 64 bytes, and the bytes of its shards one after another. It appears complete or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import secrets
import socket
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Key = tuple[
    str, tuple[tuple[int, int], ...]
]  # of a shard: the path of its array, and where it begins and ends along each axis
_PIECE = 2**22  # bytes that are copied together
_SECONDS = 60.0  # without an answer, after which a host counts as gone


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a shard lies: its file, the first of its bytes there, and their number and CRC-32."""

    file: pathlib.Path
    begin: int
    size: int
    checksum: int

    def read(self) -> bytes | None:
        """Read the shard; None if it is missing or not what was written."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.begin)
                content = file.read(self.size)
        except OSError:
            return None
        return content if len(content) == self.size and zlib.crc32(content) == self.checksum else None


def pack(manifest: dict[str, Any], shards: dict[Key, np.ndarray]) -> list[memoryview]:
    """Make the pieces of a file."""
    entries, offset, parts = [], 0, []
    for (path, index), array in shards.items():
        part = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        entries.append([path, index, offset, part.nbytes, zlib.crc32(part)])
        offset += part.nbytes
        parts.append(part)
    header = json.dumps({"manifest": manifest, "bytes": offset, "shards": entries}).encode()
    return [memoryview(header + b" " * (-(len(header) + 1) % 64) + b"\n"), *parts]


def write(path: pathlib.Path, pieces: Iterable[Any]) -> None:
    """Write a file, or replace it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("wb") as file:
        for piece in pieces:
            file.write(piece)
    os.replace(unfinished, path)


def read_header(path: pathlib.Path) -> tuple[dict[str, Any], dict[Key, Place]]:
    """Read the manifest of a file, and the places of its shards; both are empty if it is not a whole file."""
    try:
        with path.open("rb") as file:
            line = file.readline()
        header = json.loads(line)
        if path.stat().st_size != len(line) + header["bytes"]:
            return {}, {}
        places = {
            (name, tuple(map(tuple, index))): Place(path, len(line) + offset, size, checksum)
            for name, index, offset, size, checksum in header["shards"]
        }
        return header["manifest"], places
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


class ShardServer:
    """Takes copies of another process's files, and gives out shards, to those who know the token.

    Attributes:
      port: the port that it listens on.
      token: what a client must send.
      places: the shards that it gives out, by step.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Start to serve, in a thread; files that are sent are written into `folder`."""
        self.folder, self.token = folder, secrets.token_hex(16)
        self.places: dict[int, dict[Key, Place]] = {}
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("", 0), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True, name="local checkpoints").start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """A server for both versions of IP where the system has both."""

    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Handler(BaseHTTPRequestHandler):
    owner: ShardServer
    timeout = _SECONDS

    def _answer(self, code: int, content: bytes = b"") -> None:
        with contextlib.suppress(OSError):  # whoever asked is gone
            for _ in self._rest:  # a connection closed before all of it is read would be reset, and the answer lost
                pass
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _allowed(self) -> bool:
        size = self.headers.get("Content-Length", "")
        self._rest = self._body(int(size) if size.isdecimal() else 0)
        if secrets.compare_digest(self.headers.get("Authorization", "").encode(), self.owner.token.encode()):
            return True
        self._answer(403)
        return False

    def do_PUT(self) -> None:  # the name that the base class calls
        if not self._allowed():
            return
        step, name = self.path.strip("/").split("/")
        if not (step.isdecimal() and name.isdecimal()):
            return self._answer(400)
        try:
            write(self.owner.folder / step / name, self._rest)
            self._answer(200)
        except OSError as error:
            self._answer(507, (error.strerror or "").encode())

    def _body(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self.rfile.read(min(size, _PIECE))
            if not piece:
                raise OSError("the sender is gone")
            size -= len(piece)
            yield piece

    def do_POST(self) -> None:
        if not self._allowed():
            return
        step, path, index = json.loads(b"".join(self._rest))
        place = self.owner.places.get(step, {}).get((path, tuple(map(tuple, index))))
        content = place.read() if place else None
        self._answer(404) if content is None else self._answer(200, content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def send(address: Sequence[Any], step: int, number: int, pieces: Sequence[memoryview]) -> None:
    """Send a file of process `number` to a server; raise an OSError if it does not take it."""
    size = sum(piece.nbytes for piece in pieces)
    code, answer = _ask(address, "PUT", f"/{step}/{number}", iter(pieces), size)
    if code != 200:
        raise OSError(f"{address[0]} answered {code} {answer.decode(errors='replace')}")


def receive(address: Sequence[Any], step: int, key: Key) -> bytes | None:
    """Get a shard from a server; None if it does not have it, or does not answer."""
    content = json.dumps([step, *key]).encode()
    try:
        code, answer = _ask(address, "POST", "/", content, len(content))
    except OSError:
        return None
    return answer if code == 200 else None


def _ask(address: Sequence[Any], method: str, path: str, body: Any, size: int) -> tuple[int, bytes]:
    host, port, token = address
    connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
    try:
        connection.request(method, path, body, {"Authorization": token, "Content-Length": str(size)})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"{host} broke off: {error!r}") from error
    finally:
        connection.close()

"""A stand-in for Google Cloud Storage: the part of its JSON API that gcsfs and tensorstore use, in memory, with faults.

    with GcsServer(faults=Faults(seed=1, share=0.05)) as server:
        subprocess.run(..., env=os.environ | server.environment)

It keeps Google's rules that matter to a run: objects appear whole, have generations, and are written under preconditions; listings are
those of the moment; there are no folders. It answers a share of the requests, chosen by a seeded generator, with 429 or 503 or late.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

os.environ.setdefault(
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"
)  # read when gcsfs is imported: it would ask another service


@dataclasses.dataclass
class Faults:
    """What goes wrong: a `share` of the requests gets 429 or 503, and each takes up to `latency` seconds longer."""

    seed: int = 0
    share: float = 0.0
    latency: float = 0.0


@dataclasses.dataclass
class Stored:
    """An object: its bytes, generation and time."""

    data: bytes
    generation: int
    updated: float


class GcsServer:
    """The server, with the `buckets` it has; `denied` names those that answer 403.

    Attributes:
      objects: (bucket, name) -> Stored.
      counts: requests by kind ("GET", "list", "insert", "delete", ...), and "fault".
    """

    def __init__(
        self, buckets: tuple[str, ...] = ("bucket",), denied: tuple[str, ...] = (), faults: Faults | None = None
    ):
        self.buckets, self.denied, self.faults = set(buckets) | set(denied), set(denied), faults or Faults()
        self.objects: dict[tuple[str, str], Stored] = {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.counts: dict[str, int] = {}
        self.lock = threading.RLock()
        self._random, self._generation = random.Random(self.faults.seed), 1000
        handler = type("Handler", (_Handler,), {"cloud": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients that were killed
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead gcsfs and tensorstore here, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_CLOUD_PROJECT": "stand-in",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "stand-in",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "FSSPEC_GS_TOKEN": "anon",
            "FSSPEC_GCS_TOKEN": "anon",
        }

    def __enter__(self) -> GcsServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def names(self, bucket: str = "bucket", prefix: str = "") -> list[str]:
        """The names of the objects, sorted."""
        with self.lock:
            return sorted(name for one, name in self.objects if one == bucket and name.startswith(prefix))

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def fault(self) -> int | None:
        """Draw what happens to a request: None, or the status of its failure."""
        with self.lock:
            drawn, late, status = self._random.random(), self._random.random(), self._random.choice((429, 503))
        time.sleep(late * self.faults.latency)
        return status if drawn < self.faults.share else None

    def put(self, bucket: str, name: str, data: bytes, conditions: dict[str, str]) -> Stored | None:
        """Write an object if its preconditions hold, else return None."""
        with self.lock:
            if not self.allowed(bucket, name, conditions):
                return None
            self._generation += 1
            self.objects[bucket, name] = Stored(data, self._generation, time.time())
            return self.objects[bucket, name]

    def allowed(self, bucket: str, name: str, conditions: dict[str, str]) -> bool:
        found = self.objects.get((bucket, name))
        generation = str(found.generation) if found else "0"
        wanted, unwanted = conditions.get("ifGenerationMatch"), conditions.get("ifGenerationNotMatch")
        return (wanted is None or wanted == generation) and (unwanted is None or unwanted != generation)


@contextlib.contextmanager
def served_here(**faults: float) -> Iterator[GcsServer]:
    """A server that gcsfs uses in this process, too; tensorstore, which reads its address once, does not."""
    import fsspec
    import gcsfs
    from etils.epath import backend

    def forget() -> None:
        gcsfs.GCSFileSystem.clear_instance_cache()
        backend.fsspec_backend._get_filesystem.cache_clear()

    with (
        GcsServer(faults=Faults(seed=1, **faults)) as server,
        mock.patch.dict(os.environ, server.environment),
        mock.patch.dict(
            fsspec.config.conf, {name: {"token": "anon", "use_listings_cache": False} for name in ("gs", "gcs")}
        ),
    ):
        forget()
        yield server
    forget()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: GcsServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _answer(self) -> None:
        body = self._body()
        path, _, query = self.path.partition("?")
        options = {key: values[-1] for key, values in urllib.parse.parse_qs(query, keep_blank_values=True).items()}
        fault = self.cloud.fault()
        if fault:
            self.cloud.count("fault")
            return self._error(fault, "the stand-in is told to fail")
        if path.startswith("/batch"):
            return self._batch(body)
        status, headers, content = self.respond(self.command, path, options, body, dict(self.headers))
        self._send(status, headers, content)

    def respond(
        self, method: str, path: str, options: dict[str, str], body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """Answer one request: (status, headers, content)."""
        cloud = self.cloud
        if "upload_id" in options:
            return (204, {}, b"") if method == "DELETE" else self._continue(options["upload_id"], headers, body)
        found = re.fullmatch(r"(?:/(upload|download))?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?(/?)", path)
        if not found:
            return _failure(404, f"no such path {path}")
        way, bucket, rest = found[1], found[2], found[3]
        if bucket in cloud.denied:
            return _failure(403, f"the caller does not have storage.objects access to the bucket {bucket}")
        if bucket not in cloud.buckets:
            return _failure(404, "The specified bucket does not exist.")
        if rest is None:
            if way == "upload":
                return self._insert(bucket, options, body, headers)
            if path.rstrip("/").endswith("/o"):
                cloud.count("list")
                return _ok(self._list(bucket, options))
            cloud.count("bucket")
            return _ok({"kind": "storage#bucket", "name": bucket, "id": bucket, "location": "US"})
        for verb in ("/rewriteTo/b/", "/copyTo/b/"):
            if verb in rest:
                return self._copy(bucket, rest, verb)
        if "/moveTo/o/" in rest:
            source, _, target = rest.partition("/moveTo/o/")
            answer = self._copy(bucket, f"{source}/copyTo/b/{bucket}/o/{target}", "/copyTo/b/")
            cloud.objects.pop((bucket, urllib.parse.unquote(source)), None)
            return answer
        return self._object(method, bucket, urllib.parse.unquote(rest), options, headers)

    def _object(
        self, method: str, bucket: str, name: str, options: dict[str, str], headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        cloud = self.cloud
        with cloud.lock:
            found = cloud.objects.get((bucket, name))
            cloud.count(method if method != "DELETE" else "delete")
            if found is None:
                return _failure(404, f"No such object: {bucket}/{name}")
            if not cloud.allowed(bucket, name, options):
                unchanged = method == "GET" and "ifGenerationNotMatch" in options
                return (304, {}, b"") if unchanged else _failure(412, "conditionNotMet")
            if method == "DELETE":
                del cloud.objects[bucket, name]
                return 204, {}, b""
        if options.get("alt") != "media":
            return _ok(_describe(bucket, name, found))
        marks = {"x-goog-generation": str(found.generation), "X-Goog-Hash": f"md5={_md5(found.data)}"}
        marks |= {"ETag": f'"{found.generation}"', "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", {k.lower(): v for k, v in headers.items()}.get("range", ""))
        if not wanted:
            return 200, marks, found.data
        size = len(found.data)
        first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        last = min(int(wanted[2]) if wanted[1] and wanted[2] else size - 1, size - 1)
        if first >= size:
            return 416, {"Content-Range": f"bytes */{size}"}, b""
        return 206, marks | {"Content-Range": f"bytes {first}-{last}/{size}"}, found.data[first : last + 1]

    def _list(self, bucket: str, options: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = options.get("prefix", ""), options.get("delimiter", "")
        start, end = options.get("startOffset", ""), options.get("endOffset", "")
        limit, after = int(options.get("maxResults", 1000)), options.get("pageToken", "")
        items: dict[str, Any] = {}
        with self.cloud.lock:
            for name in self.cloud.names(bucket, prefix):
                if name < start or (end and name >= end):
                    continue
                head, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                if mark:
                    items[prefix + head + mark] = None
                else:
                    items[name] = _describe(bucket, name, self.cloud.objects[bucket, name])
        chosen = [name for name in sorted(items) if name > after]
        result: dict[str, Any] = {"kind": "storage#objects"}
        if len(chosen) > limit:
            result["nextPageToken"] = chosen[limit - 1]
        result["items"] = [items[name] for name in chosen[:limit] if items[name]]
        result["prefixes"] = [name for name in chosen[:limit] if items[name] is None]
        return {key: value for key, value in result.items() if value != []}

    def _insert(
        self, bucket: str, options: dict[str, str], body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        kind, cloud = options.get("uploadType"), self.cloud
        cloud.count("insert")
        if kind == "resumable":
            name = options.get("name") or json.loads(body)["name"]
            session = f"{len(cloud.sessions)}-{time.monotonic_ns()}"
            cloud.sessions[session] = {"bucket": bucket, "name": name, "data": b"", "options": options}
            place = f"{cloud.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={session}"
            return 200, {"Location": place}, b"{}"
        if kind == "multipart":
            name, body = _parts(body, {k.lower(): v for k, v in headers.items()}["content-type"])
        else:
            name = options["name"]
        written = cloud.put(bucket, name, body, options)
        return _ok(_describe(bucket, name, written)) if written else _failure(412, "conditionNotMet")

    def _continue(self, upload: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        cloud = self.cloud
        session = cloud.sessions.get(upload)
        if session is None:
            return _failure(404, "no such upload")
        cloud.count("chunk")
        found = re.fullmatch(
            r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", {k.lower(): v for k, v in headers.items()}.get("content-range", "")
        )
        if found and found[1] is not None:
            session["data"] = session["data"][: int(found[1])] + body
        elif not found:
            session["data"] = body
        if found and (found[3] == "*" or len(session["data"]) < int(found[3])):
            size = len(session["data"])
            return 308, {"Range": f"bytes=0-{size - 1}"} if size else {}, b""
        written = cloud.put(session["bucket"], session["name"], session["data"], session["options"])
        return (
            _ok(_describe(session["bucket"], session["name"], written)) if written else _failure(412, "conditionNotMet")
        )

    def _copy(self, bucket: str, rest: str, verb: str) -> tuple[int, dict[str, str], bytes]:
        source, _, target = rest.partition(verb)
        to, _, name = target.partition("/o/")
        name, source = urllib.parse.unquote(name), urllib.parse.unquote(source)
        self.cloud.count("copy")
        with self.cloud.lock:
            found = self.cloud.objects.get((bucket, source))
            if found is None:
                return _failure(404, f"No such object: {bucket}/{source}")
            written = self.cloud.put(to, name, found.data, {})
        assert written is not None
        done = _describe(to, name, written)
        return _ok({"kind": "storage#rewriteResponse", "done": True, "resource": done} if "rewrite" in verb else done)

    def _batch(self, body: bytes) -> None:
        """Answer several requests in one, as clients delete folders."""
        mark = self.headers["Content-Type"].split("boundary=")[1].strip('"; ')
        answers = []
        for part in body.split(f"--{mark}".encode()):
            found = re.search(rb"(GET|POST|PUT|DELETE|PATCH) (\S+) HTTP", part)
            if not found:
                continue
            path, _, query = found[2].decode().partition("?")
            path = path.removeprefix(self.cloud.url)
            status, _, content = self.respond(found[1].decode(), path, dict(urllib.parse.parse_qsl(query)), b"", {})
            number = re.search(rb"Content-ID: *<?([^>\r\n]+)>?", part, re.IGNORECASE)
            label = f"Content-ID: <response-{number[1].decode()}>\r\n" if number else ""
            answers.append(
                f"--batch_x\r\nContent-Type: application/http\r\n{label}\r\nHTTP/1.1 {status} .\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(content)}\r\n\r\n{content.decode()}\r\n"
            )
        text = "".join(answers) + "--batch_x--\r\n"
        self._send(200, {"Content-Type": "multipart/mixed; boundary=batch_x"}, text.encode())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _error(self, status: int, message: str) -> None:
        self._send(*_failure(status, message))

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _parts(body: bytes, kind: str) -> tuple[str, bytes]:
    """Split a multipart upload into the object's name and content."""
    found = re.search(r'boundary="?([^";]+)', kind)
    assert found, kind
    mark = b"--" + found[1].encode()
    end = b"\r\n" if body.startswith(mark + b"\r\n") else b"\n"
    second, last = body.index(mark, 1), body.rindex(mark)
    described = body[:second].partition(end + end)[2]
    return json.loads(described)["name"], body[second:last].partition(end + end)[2].removesuffix(end)


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def _describe(bucket: str, name: str, found: Stored) -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.updated))
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{found.generation}",
        "name": name,
        "bucket": bucket,
        "generation": str(found.generation),
        "metageneration": "1",
        "size": str(len(found.data)),
        "contentType": "application/octet-stream",
        "storageClass": "STANDARD",
        "timeCreated": now,
        "updated": now,
        "md5Hash": _md5(found.data),
        "etag": str(found.generation),
    }


def _ok(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _failure(status: int, message: str) -> tuple[int, dict[str, str], bytes]:
    content = {"error": {"code": status, "message": message, "errors": [{"message": message, "reason": "standIn"}]}}
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()

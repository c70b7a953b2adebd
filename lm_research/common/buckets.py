"""Paths in buckets, gs://BUCKET/PATH and s3://BUCKET/PATH: etils.epath over fsspec, with the clients gcsfs and s3fs.

The clients repeat requests that a server answers with 429 or 5xx, with growing pauses. An object becomes visible when it is complete, and
listings are those of this moment, as both services promise and the caches of listings, which are off, would not.
"""

from __future__ import annotations

import errno
import io
import os
import pathlib
import re
import time
import traceback
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from lm_research.errors import ConfigError, UserError

DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}  # address -> package
_ARRAYS = ("gs",)  # where Orbax reads and writes arrays, besides file systems
_EXTRAS = {"gs": "gcs", "s3": "s3"}
_ADDRESS = re.compile(r"(gs|s3)://")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_CLIENTS = ("fsspec", "gcsfs", "s3fs", "aiobotocore", "botocore", "aiohttp", "google")
_PAUSES = (0.1, 0.3, 1.0, 3.0)  # seconds before a conflict is tried again
_BUFFER = 2**16  # bytes of an object that are read at once, from the client's own, larger buffer
FIXES = {
    errno.EACCES: "Let the account that runs this list, read, write and delete objects there, or log in with another one",
    errno.ENOENT: "Check the address, and that the bucket exists",
    errno.EIO: "Check the network and the service's state",
}
_STATUS = re.compile(r"http_response_code='(\d{3})'|\bstatus[ =:]+(\d{3})\b")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a gs:// or s3:// address."""
    text = os.fspath(path)
    return isinstance(text, str) and bool(_ADDRESS.match(text))


def takes_arrays(path: str | os.PathLike[str]) -> bool:
    """Whether Orbax can read and write arrays at a path."""
    return not is_remote(path) or os.fspath(path).partition("://")[0] in _ARRAYS


def remote_path(text: str, where: str = "", error: type[UserError] = ConfigError) -> pathlib.Path:
    """Convert an address to a path; nothing is read.

    Args:
      text: the address.
      where: the flag or key, for messages.
      error: class of the error.

    Raises:
      error: it names no bucket, or the package for its service is not installed.
    """
    scheme, _, rest = text.partition("://")
    shown = f"{where}={text}" if where else text
    if not _BUCKET.fullmatch(rest.partition("/")[0]):
        raise error(f"{shown} names no bucket. Write {scheme}://BUCKET/PATH.")
    if find_spec(DRIVERS[scheme]) is None:
        raise error(
            f"{shown} is in a bucket, which needs the package {DRIVERS[scheme]}. Install it with `pip install {DRIVERS[scheme]}` (or `pip "
            f"install 'lm_research[{_EXTRAS[scheme]}]'`), or give a path on this machine."
        )
    from etils import epath

    _configure()
    path: pathlib.Path = epath.Path(f"{scheme}://{re.sub('/+', '/', rest).rstrip('/')}")
    return path


def _configure() -> None:
    """Let every client list what is there now and repeat refused requests, and etils use these clients even if TensorFlow is installed."""
    import fsspec

    os.environ.setdefault(
        "AWS_MAX_ATTEMPTS", "7"
    )  # which take half a minute; by default a listing fails after some seconds
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault(
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"
    )  # which asks another service what kind each bucket is
    for scheme in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)


def filesystem(path: Any) -> tuple[Any, str]:
    """Return the fsspec file system of a path, and the path's name in it."""
    import fsspec

    system, name = fsspec.core.url_to_fs(os.fspath(path))
    return system, name


def write(path: Any, content: bytes) -> None:
    """Write an object in one request; readers see the old or the new one."""
    system, name = filesystem(path)
    system.pipe_file(name, content)


def check_writable(folder: Any) -> None:
    """Write and delete an object of a folder, before hours of work whose result cannot be stored there; raises the client's error."""
    probe = folder / f".probe-{uuid.uuid4().hex}"
    write(probe, b"")
    probe.unlink()


def read(path: Any) -> bytes:
    """Read an object in one request, as it is at one moment; a file object would ask for its size first."""
    system, name = filesystem(path)
    content: bytes = system.cat_file(name)
    return content


def read_ranges(path: Any, ranges: list[tuple[int, int]]) -> list[bytes]:
    """Read ranges of the bytes of an object, (first, end), several at once."""
    system, name = filesystem(path)
    firsts, ends = (list(each) for each in zip(*ranges, strict=True)) if ranges else ([], [])
    contents: list[bytes] = system.cat_ranges([name] * len(ranges), firsts, ends, on_error="raise")
    return contents


def size(path: Any) -> int:
    """Return the bytes of an object."""
    system, name = filesystem(path)
    return int(system.info(name)["size"])


def upload(file: str | os.PathLike[str], path: Any) -> None:
    """Write an object from a local file of any size."""
    system, name = filesystem(path)
    system.put_file(os.fspath(file), name)


def download(places: Mapping[Any, pathlib.Path]) -> None:
    """Copy objects of one bucket to files of this machine, several at once."""
    for target in places.values():
        target.parent.mkdir(parents=True, exist_ok=True)
    if places:
        system = filesystem(next(iter(places)))[0]
        system.get([filesystem(source)[1] for source in places], list(map(str, places.values())))


def move(source: Any, target: Any) -> None:
    """Rename a folder: every object is copied by the service, then removed."""
    system, name = filesystem(source)
    system.mv(name, filesystem(target)[1], recursive=True)


def create(path: Any, content: bytes) -> bool:
    """Create an object unless it exists; return whether this call did. Of several that try at once with different contents, one succeeds.

    Google Cloud Storage and S3 decide this themselves (ifGenerationMatch=0, If-None-Match: *).
    """
    system, name = filesystem(path)
    for pause in (*_PAUSES, None):
        try:
            system.pipe_file(name, content, mode="create")
            break
        except FileExistsError:
            # A client that lost the answer to its first request repeats it, and is refused by its own object.
            return bool(system.cat_file(name) == content)
        except OSError as error:
            if status_of(error) != 409 or pause is None:  # S3's while another request for the object is under way
                raise
            time.sleep(pause)
    return True


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that a client's error reports, or None."""
    for one in (error, error.__cause__):
        known = vars(one) if one is not None else {}
        code = str(known.get("code", ""))
        if code.isdecimal():
            return int(code)
        if isinstance(answer := known.get("response"), dict) and "ResponseMetadata" in answer:  # botocore's
            return int(answer["ResponseMetadata"]["HTTPStatusCode"])
    found = _STATUS.search(str(error))
    if found:
        return int(found[1] or found[2])
    return 401 if "credentials" in str(error) else None  # which no server has seen


def from_client(error: BaseException) -> bool:
    """Whether an error comes from a bucket's client: one of its own classes, or an OSError raised inside it."""
    if type(error).__module__.partition(".")[0] in _CLIENTS or "http_response_code='" in str(
        error
    ):  # the latter is tensorstore's
        return True
    if not isinstance(error, OSError | TimeoutError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any(f"/{client}/" in frame.filename for client in _CLIENTS for frame in frames)


def reason(error: BaseException) -> str:
    """Describe a client's error in a few words."""
    named = {401: "no valid credentials", 403: "permission denied", 404: "no such bucket or object"}
    number = errno_of(error)
    status = status_of(error) or {errno.EACCES: 403, errno.ENOENT: 404}.get(number)
    return named.get(status or 0) or " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def stamp(entry: Mapping[str, Any]) -> tuple[int, str]:
    """Return the size of an object in a detailed listing, and the second in which it was written."""
    return entry["size"], str(int((entry.get("mtime") or entry["LastModified"]).timestamp()))


def open_object(path: Any) -> io.BufferedReader:
    """Open an object for reading.

    Raises:
      OSError: it cannot be opened; the strerror has the reason.
    """
    try:
        return io.BufferedReader(path.open("rb"), _BUFFER)  # the clients' own files read no lines of limited length
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except Exception as error:
        number = errno_of(error)
        raise OSError(number, f"{os.strerror(number)} ({reason(error)})", str(path)) from error


def errno_of(error: BaseException) -> int:
    """Return the errno that says what a client's error says: no permission, nothing there, or a server that fails."""
    if isinstance(error, PermissionError) or status_of(error) in (401, 403) or str(error).startswith("Forbidden"):
        return errno.EACCES
    if isinstance(error, FileNotFoundError) or status_of(error) == 404:
        return errno.ENOENT
    return errno.EIO

"""Reporting errors of the operating system in one paragraph (file, cause, free space, what is saved, fix), and writing files atomically.

`guarded` in cli.py reports every such error that reaches it. The rest of the library adds what only it can supply: `with_filename` the
name of a file, `reporting_disk_errors` what is not lost. Libraries wrap such errors in their own, so an error is recognized by its errno
or, if that is lost, by the system's message for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import resource
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import BinaryIO

from lm_research.common import buckets
from lm_research.common.paths import SPECIAL, is_remote, kind
from lm_research.errors import UserError

_SERVER = "The disk or its server fails: read the system's log (dmesg), and copy what is there before more is written"
_LIMIT = "Raise the limit in the shell that starts it"
# Errors with an external cause, not a bug, and the fix for each.
FIXES = {
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Delete some of your files there, or have the quota raised",
    errno.EFBIG: _LIMIT,
    errno.EROFS: "Mount that file system for writing, or choose another path",
    errno.EACCES: "Change its permissions, or choose another path",
    errno.EPERM: "Change its permissions, or choose another path",
    errno.EMFILE: _LIMIT,
    errno.ENFILE: "End programs that hold files open",
    errno.EIO: _SERVER,
    errno.ESTALE: _SERVER,
    errno.ENXIO: _SERVER,
    errno.ENODEV: _SERVER,
    errno.ENOMEM: "Free memory",
    errno.EBUSY: "End the program that uses it",
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY),
        "Check the path",
    ),
}
_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# Messages that identify an error in the text of other errors: only those that are specific enough.
_BY_MESSAGE = {
    os.strerror(number).lower(): number
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.EIO)
} | {
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    "disk i/o error": errno.EIO,
}


class DiskError(UserError):
    """A file that cannot be written or read because of an error of the operating system."""


def as_disk_error(error: BaseException, safe: str = "", place: str = "") -> DiskError | None:
    """Convert an error with an operating system error as its cause; return None for any other.

    Args:
      error: the error; its notes become sentences of the message.
      safe: complete sentences about what is not lost.
      place: folder to name if the error names no file.
    """
    number, path = errno_of(error), _path_of(error) or place
    if number is None:
        return None
    if client := _client_error(error):
        path = path if is_remote(path) else place
        what = " ".join(
            [f"{path or 'A bucket'} cannot be used: {buckets.reason(client)}.", *vars(error).get("__notes__", ())]
        )
        return DiskError(
            " ".join(filter(None, [what, safe, f"{buckets.FIXES[number]}, then run the same command again."]))
        )
    action = "written" if number in _WRITE_ERRORS else "used"
    what = f"{path or 'A file'} cannot be {action}: {_explain(number, path)}."
    what = " ".join([what, *vars(error).get("__notes__", ())])
    if not path:
        what += f" The error was: {' '.join(f'{type(error).__name__}: {error}'.split())[:200]}."
    return DiskError(" ".join(filter(None, [what, safe, f"{FIXES[number]}, then run the same command again."])))


@contextlib.contextmanager
def reporting_disk_errors(safe: Callable[[], str], path: pathlib.Path) -> Iterator[None]:
    """Convert operating system errors inside the context to DiskErrors.

    Args:
      safe: returns sentences about what is not lost.
      path: folder that is written to, for errors that name no file.
    """
    try:
        yield
    except UserError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in _WRITE_ERRORS:
            raise
        raise DiskError(f"{error} {safe()}") from error  # reported where it occurred, without what is saved
    except Exception as error:
        disk_error = as_disk_error(error, safe(), str(path))
        if disk_error is None:
            raise
        raise disk_error from error


@contextlib.contextmanager
def with_filename(path: pathlib.Path | str) -> Iterator[None]:
    """Set this filename on operating system errors inside the context that have none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def unwrapping_os_errors(path: pathlib.Path, note: Callable[[], str]) -> Iterator[None]:
    """Replace library errors caused by an operating system error with an OSError for `path` and a note.

    Args:
      path: folder that the library writes to.
      note: returns a sentence for the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = errno_of(error)
        if number is None:
            raise
        os_error = OSError(number, os.strerror(number), str(path))
        os_error.add_note(note())
        raise os_error from error


def describe_os_error(error: OSError, path: pathlib.Path | str) -> str:
    """Describe why an operation on `path` failed: the system's message and, if the disk is full, the free space."""
    number = errno_of(error)  # shutil's errors have it only in their text
    return (error.strerror or str(error)) if number is None else _explain(number, str(path))


def errno_of(error: BaseException | None) -> int | None:
    """Return the errno of the operating system error that caused an error, or None."""
    for one in _chain(error):
        # An error that was being handled at the time, such as a missing optional file, may be unrelated.
        if isinstance(one, OSError) and one.errno in (FIXES if one is error else _BY_MESSAGE.values()):
            return one.errno
    for one in _chain(error):
        text = str(one).lower()
        for message, number in _BY_MESSAGE.items():
            if message in text:
                return number
    client = _client_error(error)
    return buckets.errno_of(client) if client else None


def _client_error(error: BaseException | None) -> BaseException | None:
    """Return the error of a bucket's client that caused an error, or None."""
    return next((one for one in _chain(error) if buckets.from_client(one)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the latest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _path_of(error: BaseException) -> str:
    """Return the file that an error names, or ""."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.filename is not None:
            return os.fsdecode(one.filename) if isinstance(one.filename, str | bytes | os.PathLike) else ""
    for one in _chain(error):
        if found := re.search(r"""["'](/[^"'\n]+)["']|((?:gs|s3)://[^\s"']+)""", str(one)):
            return found[1] or found[2]
    return ""


def _explain(number: int, path: str) -> str:
    """Return the system's message for an error, with the free space or the limit that explains it."""
    message = os.strerror(number)
    if number in (errno.ENOSPC, errno.EDQUOT) and path:
        return f"{message} ({free_space(path)})"
    for one, limited, name in ((errno.EFBIG, resource.RLIMIT_FSIZE, "f"), (errno.EMFILE, resource.RLIMIT_NOFILE, "n")):
        limit = resource.getrlimit(limited)[0]
        if number == one and limit != resource.RLIM_INFINITY:
            shown = format_size(limit) if name == "f" else f"{limit} at once"
            return f"{message} (the limit of this process is {shown}, `ulimit -{name}`)"
    return message


def free_space(path: pathlib.Path | str) -> str:
    """Describe the free space on the file system of `path`, which need not exist: "1.2 MB of 8.4 MB are free"."""
    if is_remote(path):
        return "a bucket has no limit of its own"
    path = pathlib.Path(path).absolute()
    try:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        usage, files = shutil.disk_usage(existing), os.statvfs(existing)
    except OSError:
        return "the free space is unknown"
    if files.f_files and not files.f_favail:
        return f"the file system has no free inodes, though {format_size(usage.free)} are free"
    return f"{format_size(usage.free)} of {format_size(usage.total)} are free"


def format_size(number: float) -> str:
    """Format a number of bytes, for example as "1.2 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 999.5:  # what rounds to 1,000 has the next unit
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.4g} TB"


@contextlib.contextmanager
def atomic_file(path: pathlib.Path, keep: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file for writing that replaces `path` when the block ends; if it fails, the file is removed.

    Args:
      path: destination, on this machine or in a bucket; a pipe, socket or device is rejected, because the file would replace it.
      keep: whether to sync the file to disk, so that it survives a power failure; files that are written often go without.
    """
    if is_remote(path):
        with tempfile.NamedTemporaryFile() as spool:
            yield spool  # type: ignore[misc]  # a wrapper with the same methods
            spool.flush()
            buckets.upload(spool.name, path)
        return
    if kind(path) in SPECIAL:
        raise DiskError(f"{path} is {kind(path)}, which a file would replace. Choose another path.")
    temporary = path.with_name(f".{path.name[:50]}.{uuid.uuid4().hex}.tmp")
    try:
        with with_filename(path):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                if keep:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Create a temporary folder that is moved to `path` when the block ends, unless another process was first; removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: pathlib.Path, path: pathlib.Path) -> bool:
    """Rename a finished folder to `path`; return False if another process was first, whose folder is kept."""
    temporary.chmod(0o755)  # mkdtemp's folders are private; a shared cache is not
    try:
        os.rename(temporary, path)
    except OSError:
        if not path.is_dir():
            raise
        return False
    return True


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replace a file so that readers, also after a crash, see either the old or the new content."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        return buckets.write(path, data)
    with atomic_file(path, keep=False) as file:
        file.write(data)

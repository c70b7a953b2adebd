"""What the operating system refuses, told in one paragraph: which file, why, how much room there is, what is safe, what to do.

`guarded` in cli.py tells of every such error that reaches it; the rest of the library adds what only it knows: `naming` the file, where
the system does not, `keeping` what is not lost. Libraries wrap such errors in their own, so an error is known by its number or, where
that is gone, by the words that the system has for it.
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

from lm_research.common.paths import SPECIAL, kind
from lm_research.errors import UserError

_SERVER = "The disk or its server fails: read the system's log (dmesg), and copy what is there before more is written"
_LIMIT = "Raise the limit in the shell that starts it"
# Errors that say something of the world rather than of a program, with what to do.
FIXES = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Remove files of yours there, or have the quota raised",
    errno.EFBIG: _LIMIT,
    errno.EROFS: "Mount that file system for writing, or name another place",
    errno.EACCES: "Change its permissions, or name another place",
    errno.EPERM: "Change its permissions, or name another place",
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
_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# Those that are looked for in the words of other errors: few enough to be meant.
_IN_WORDS = {
    os.strerror(number).lower(): number
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.EIO)
} | {
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    "disk i/o error": errno.EIO,
}


class DiskError(UserError):
    """A file that the operating system does not let this process write or read."""


def as_disk_error(error: BaseException, safe: str = "", place: str = "") -> DiskError | None:
    """The error for people, if the operating system is behind `error`; None for any other. Notes of the error become sentences.

    Args:
      safe: whole sentences about what is not lost.
      place: a folder, for an error that names no file.
    """
    number, path = errno_of(error), _path_of(error) or place
    if number is None:
        return None
    verb = "written" if number in _OF_WRITING else "used"
    what = f"{path or 'A file'} cannot be {verb}: {_facts(number, path)}."
    what = " ".join([what, *vars(error).get("__notes__", ())])
    if not path:
        what += f" What failed said: {' '.join(f'{type(error).__name__}: {error}'.split())[:200]}."
    return DiskError(" ".join(filter(None, [what, safe, f"{FIXES[number]}, then run the same command again."])))


@contextlib.contextmanager
def reporting_disk_errors(safe: Callable[[], str], path: pathlib.Path) -> Iterator[None]:
    """Turns what the operating system refuses inside into a DiskError, with `safe()` about what is not lost.

    `path`: of the folder that is written to, for errors that name no file.
    """
    try:
        yield
    except UserError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in _OF_WRITING:
            raise
        raise DiskError(f"{error} {safe()}") from error  # told where it was met, which knows nothing of the rest
    except Exception as error:
        refusal = as_disk_error(error, safe(), str(path))
        if refusal is None:
            raise
        raise refusal from error


@contextlib.contextmanager
def with_filename(path: pathlib.Path | str) -> Iterator[None]:
    """Gives an error of the operating system that comes from inside without a name the name of this file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def unwrapping_os_errors(path: pathlib.Path, note: Callable[[], str]) -> Iterator[None]:
    """Gives errors of the operating system that a library wraps, about files within, the name of what is saved, and a note."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = errno_of(error)
        if number is None:
            raise
        refused = OSError(number, os.strerror(number), str(path))
        refused.add_note(note())
        raise refused from error


def describe_os_error(error: OSError, path: pathlib.Path | str) -> str:
    """Why something at `path` failed: the system's words and, where there is no room, how much there is."""
    number = errno_of(error)  # which shutil's errors have in their words alone
    return (error.strerror or str(error)) if number is None else _facts(number, str(path))


def errno_of(error: BaseException | None) -> int | None:
    """The number of the operating system's error that is behind an error, or None."""
    for one in _chain(error):
        # An error that was only being handled, such as that of a file that need not exist, may have nothing to do with this one.
        if isinstance(one, OSError) and one.errno in (FIXES if one is error else _IN_WORDS.values()):
            return one.errno
    for one in _chain(error):
        text = str(one).lower()
        for words, number in _IN_WORDS.items():
            if words in text:
                return number
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the latest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _path_of(error: BaseException) -> str:
    """The file it is about, or "" if none is named."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.filename is not None:
            return os.fsdecode(one.filename) if isinstance(one.filename, str | bytes | os.PathLike) else ""
    for one in _chain(error):
        if found := re.search(r"""["'](/[^"'\n]+)["']""", str(one)):
            return found[1]
    return ""


def _facts(number: int, path: str) -> str:
    """The system's words for an error, with the number that explains it."""
    words = os.strerror(number)
    if number in (errno.ENOSPC, errno.EDQUOT) and path:
        return f"{words} ({free_space(path)})"
    for one, limited, name in ((errno.EFBIG, resource.RLIMIT_FSIZE, "f"), (errno.EMFILE, resource.RLIMIT_NOFILE, "n")):
        limit = resource.getrlimit(limited)[0]
        if number == one and limit != resource.RLIM_INFINITY:
            shown = format_size(limit) if name == "f" else f"{limit} at once"
            return f"{words} (the limit of this process is {shown}, `ulimit -{name}`)"
    return words


def free_space(path: pathlib.Path | str) -> str:
    """How much can still be written where `path` is or would be, such as "1.2 MB of 8.4 MB are free"."""
    path = pathlib.Path(path).absolute()
    try:
        place = next(parent for parent in (path, *path.parents) if parent.exists())
        found, files = shutil.disk_usage(place), os.statvfs(place)
    except OSError:
        return "how much room there is cannot be told"
    if files.f_files and not files.f_favail:
        return f"there can be no more files, though {format_size(found.free)} are free"
    return f"{format_size(found.free)} of {format_size(found.total)} are free"


def format_size(number: float) -> str:
    """Bytes in words, such as "1.2 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.4g} TB"


@contextlib.contextmanager
def atomic_file(path: pathlib.Path, keep: bool = True) -> Iterator[BinaryIO]:
    """A file that appears at `path` when the block ends, with all its bytes on the disk; nothing is left of one that fails.

    `keep`: whether the bytes are to outlast a power cut that follows at once; what is written often does without. A pipe, socket or
    device is refused: the file would take its place.
    """
    if kind(path) in SPECIAL:
        raise DiskError(f"{path} is {kind(path)}, and a file would take its place. Name another place.")
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
    """A folder, next to its place, that appears at `path` when the block ends, unless another process was first; nothing is left of one that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: pathlib.Path, path: pathlib.Path) -> bool:
    """Renames a finished folder into place; False when another process was first, whose folder then stays."""
    temporary.chmod(0o755)  # mkdtemp's folders are private; a shared cache is not
    try:
        os.rename(temporary, path)
    except OSError:
        if not path.is_dir():
            raise
        return False
    return True


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file so that a reader, or a crash, sees the old or the new content and nothing between."""
    with atomic_file(path, keep=False) as file:
        file.write(content.encode() if isinstance(content, str) else content)

"""Validating paths from flags and config files, and opening only regular files.

A path is a pathlib.Path on this machine or an etils.epath.Path in a bucket (buckets.py). Both have the methods that runs use: `/`, name,
parent, exists, is_dir, is_file, iterdir, glob, mkdir, unlink, read_bytes, read_text, write_bytes, write_text, open("rb"). `as_path` makes
one of a text; pathlib.Path would make a folder named "gs:" of an address.

Pipes, sockets and devices may never end, and links may be broken; `open_file` never waits for them.
"""

from __future__ import annotations

import errno
import io
import os
import pathlib
import stat

from lm_research.common import buckets
from lm_research.common.buckets import is_remote as is_remote
from lm_research.errors import ConfigError, UserError

FILE, FOLDER, NOTHING, LINK_TO_NOTHING = "file", "folder", "", "a link to nothing"
_NAMES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
SPECIAL = frozenset(_NAMES.values())  # values of `kind`
_STAT_ERRORS = {
    errno.ELOOP: "a link that leads back to itself",
    errno.ENAMETOOLONG: "a name that is too long for a file",
    errno.EACCES: "inaccessible (permission denied)",
}
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes: Linux's NAME_MAX, and PATH_MAX without its terminating NUL


def as_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Convert a text or path to a path: one in a bucket if it is a gs:// or s3:// address; raise a ConfigError if that cannot be used."""
    if isinstance(path, str) and is_remote(path):
        return buckets.remote_path(path)
    return path if isinstance(path, pathlib.Path) or is_remote(path) else pathlib.Path(path)  # type: ignore[return-value]


def path_of(text: str, where: str, *, error: type[UserError] = ConfigError) -> pathlib.Path:
    """Convert a text to a path with `~` expanded, or an address to a path in a bucket; the path need not exist.

    Args:
      text: the path as given by the user.
      where: the flag or key, for messages: "--input", "config.data.source".
      error: class of the error.

    Raises:
      error: the text is empty, too long, not UTF-8, has a NUL, or starts with the `~` of an unknown user; or it is an address in no bucket, or of
        a service whose package is not installed.
    """
    if not text.strip():
        raise error(f"{where} is empty. Give a path.")
    if "\0" in text:
        raise error(f"{where}={text[:80]!r} has a NUL, which a path cannot have. Remove it.")
    try:
        names = [name.encode() for name in text.split("/")]
    except UnicodeEncodeError as cause:
        raise error(
            f"{where}={ascii(text[:80])} is not UTF-8 (character {cause.start + 1}). Rename it, or make a link to it whose name is UTF-8."
        ) from cause
    if max(map(len, names)) > LONGEST_NAME or len(text.encode()) > LONGEST_PATH:
        raise error(
            f"{where}={text[:40]}... is too long for a path (at most {LONGEST_NAME} bytes per name, {LONGEST_PATH} in total). Shorten it."
        )
    if is_remote(text):
        return buckets.remote_path(text, where, error)
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as cause:
        raise error(
            f"{where}={text}: there is no home directory for {names[0].decode()}. Write the full path."
        ) from cause


def stays_inside(name: str) -> bool:
    """Whether a relative path stays inside the folder that it is joined to."""
    parts = name.replace("\\", "/").split("/")
    return not set(parts) & {"", ".", ".."} and "\0" not in name


def kind(path: str | os.PathLike[str]) -> str:
    """Return what a path leads to: FILE, FOLDER, NOTHING, or a description of anything else. Opens nothing and raises nothing."""
    if is_remote(path):
        return _remote_kind(as_path(path))
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return LINK_TO_NOTHING if os.path.islink(path) else NOTHING
    except OSError as error:
        return _STAT_ERRORS.get(error.errno or 0, str(error.strerror))
    except ValueError:  # a NUL, or an unpaired surrogate
        return "a name that a file cannot have"
    if stat.S_ISREG(mode):
        return FILE
    return FOLDER if stat.S_ISDIR(mode) else _NAMES.get(stat.S_IFMT(mode), "not a regular file")


def _remote_kind(path: pathlib.Path) -> str:
    try:
        return FOLDER if path.is_dir() else FILE if path.exists() else NOTHING
    except Exception as error:  # of any class of the clients
        return f"inaccessible ({buckets.reason(error)})"


def odd_file(folder: pathlib.Path) -> str:
    """Describe the first entry in a folder, at any depth, that is neither a file nor a folder; "" if there is none, as in buckets."""
    if is_remote(folder):
        return ""
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            if (found := kind(path := os.path.join(parent, name))) not in (FILE, NOTHING, _STAT_ERRORS[errno.EACCES]):
                return f"{path} is {found}, not a file"
    return ""


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file or an object in a bucket for reading, without waiting for a pipe or device.

    Raises:
      OSError: it cannot be opened, or is not a regular file; the strerror describes what it is.
    """
    if is_remote(path):
        return buckets.open_object(as_path(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, _described(path) or error.strerror, str(path)) from error
    except ValueError as error:
        raise OSError(errno.EINVAL, _described(path), str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, _described(path) or "it is not a regular file", str(path))
    return open(descriptor, "rb")


def _described(path: str | os.PathLike[str]) -> str:
    found = kind(path)
    return "" if found in (FILE, NOTHING) else f"it is {'a folder' if found == FOLDER else found}"

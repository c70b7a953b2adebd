"""Validating paths from flags and config files, and opening only regular files.

Pipes, sockets and devices may never end, and links may be broken; `open_file` never waits for them.
"""

from __future__ import annotations

import errno
import io
import os
import pathlib
import stat

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


def path_of(text: str, where: str, *, error: type[UserError] = ConfigError) -> pathlib.Path:
    """Convert a text to a path with `~` expanded; the path need not exist.

    Args:
      text: the path as given by the user.
      where: the flag or key, for messages: "--input", "config.data.source".
      error: class of the error.

    Raises:
      error: the text is empty, too long, not UTF-8, has a NUL, or starts with the `~` of an unknown user.
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


def odd_file(folder: pathlib.Path) -> str:
    """Describe the first entry in a folder, at any depth, that is neither a file nor a folder; "" if there is none."""
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            if (found := kind(path := os.path.join(parent, name))) not in (FILE, NOTHING, _STAT_ERRORS[errno.EACCES]):
                return f"{path} is {found}, not a file"
    return ""


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading, without waiting for a pipe or device.

    Raises:
      OSError: it cannot be opened, or is not a regular file; the strerror describes what it is.
    """
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

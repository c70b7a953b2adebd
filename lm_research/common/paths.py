"""Paths that people give, in flags and in files of settings: what no file system takes is refused before anything looks for it.

What a path leads to may be no file of data: pipes, sockets and devices may never end, and links may lead nowhere. `open_file` never waits.
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
SPECIAL = frozenset(_NAMES.values())  # of what `kind` says
_TROUBLES = {
    errno.ELOOP: "a link that leads back to itself",
    errno.ENAMETOOLONG: "a name that is too long for a file",
    errno.EACCES: "out of reach: permission denied",
}
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes that Linux takes: NAME_MAX, and PATH_MAX without the byte that ends it


def path_of(text: str, where: str, *, error: type[UserError] = ConfigError) -> pathlib.Path:
    """The path that a text stands for, `~` expanded; whether anything is there is not looked at.

    Args:
      text: as it was given.
      where: the flag or key that gave it, for the message: "--input", "config.data.source".

    Raises:
      error: it is empty, too long, no text in UTF-8, has a NUL, or starts with the `~` of nobody.
    """
    if not text.strip():
        raise error(f"{where} is empty. Give a path.")
    if "\0" in text:
        raise error(f"{where}={text[:80]!r} has a NUL, which no path has. Leave it out.")
    try:
        names = [name.encode() for name in text.split("/")]
    except UnicodeEncodeError as mistake:
        raise error(
            f"{where}={ascii(text[:80])} is not UTF-8 (character {mistake.start + 1}). Give it a name in UTF-8, for example by a link."
        ) from mistake
    if max(map(len, names)) > LONGEST_NAME or len(text.encode()) > LONGEST_PATH:
        raise error(
            f"{where}={text[:40]}... is longer than a path can be (names of {LONGEST_NAME} bytes, {LONGEST_PATH} in all). Shorten it."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as mistake:
        raise error(f"{where}={text}: there is no home directory for {names[0].decode()}. Write it out.") from mistake


def stays_inside(name: str) -> bool:
    """Whether a relative path names a file inside the folder that it is joined to."""
    parts = name.replace("\\", "/").split("/")
    return not set(parts) & {"", ".", ".."} and "\0" not in name


def kind(path: str | os.PathLike[str]) -> str:
    """What a path leads to: FILE, FOLDER, NOTHING, or what else it is in words. Nothing is opened, and no error raised."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return LINK_TO_NOTHING if os.path.islink(path) else NOTHING
    except OSError as error:
        return _TROUBLES.get(error.errno or 0, str(error.strerror))
    except ValueError:  # a zero character, or half a character
        return "a name that no file can have"
    if stat.S_ISREG(mode):
        return FILE
    return FOLDER if stat.S_ISDIR(mode) else _NAMES.get(stat.S_IFMT(mode), "no regular file")


def odd_file(folder: pathlib.Path) -> str:
    """The first thing in a folder, at any depth, that is neither a file nor a folder, and what it is; "" if none can be seen."""
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            if (found := kind(path := os.path.join(place, name))) not in (FILE, NOTHING, _TROUBLES[errno.EACCES]):
                return f"{path} is {found}, and no file"
    return ""


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A regular file, to be read. Anything else is never waited for.

    Raises:
      OSError: it cannot be opened, or is no regular file; its strerror says what it is.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, _described(path) or error.strerror, str(path)) from error
    except ValueError as error:
        raise OSError(errno.EINVAL, _described(path), str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, _described(path) or "it is no regular file", str(path))
    return open(descriptor, "rb")


def _described(path: str | os.PathLike[str]) -> str:
    found = kind(path)
    return "" if found in (FILE, NOTHING) else f"it is {'a folder' if found == FOLDER else found}"

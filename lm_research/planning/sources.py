"""Lines of Python code that instructions come from, by the tables in a module's header."""

from __future__ import annotations

import re

from lm_research.planning.program import Computation, Instruction, Program

# Files of this package are ours, except those that only compile.
_OURS = re.compile(r".*?(lm_research/(?!planning/|plan\.py).*)")
UNKNOWN = "(compiler)"
# Instructions that only give another form to their first operand.
_RENAMING = frozenset(
    "bitcast broadcast reshape convert copy copy-done copy-start slice-done slice-start custom-call get-tuple-element parameter".split()
)


class Sources:
    """Source lines of a program's instructions, the innermost of this package and the line in another file that it is called from.

    For example `lm_research/models/layers.py:107 from models/heads.py:31`.
    """

    def __init__(self, program: Program) -> None:
        """Read the tables FileNames, FileLocations and StackFrames."""
        header = program.header
        files = dict(re.findall(r'^(\d+) "([^"]+)"$', _section(header, "FileNames"), re.MULTILINE))
        places = re.findall(
            r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)",
            _section(header, "FileLocations"),
            re.MULTILINE,
        )
        frames = re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", _section(header, "StackFrames"), re.MULTILINE
        )
        self._place = {number: (files.get(file, ""), line) for number, file, line in places}
        # A frame's parent is printed plus one; 1 is none.
        self._frame = {number: (place, str(int(parent or 1) - 1)) for number, place, parent in frames}
        self._known: dict[str, str] = {}

    def line(self, computation: Computation, one: Instruction, depth: int = 4) -> str:
        """Return the line that an instruction comes from; a copy comes from where its operand does."""
        if frame := one.attribute(r"stack_frame_id=(\d+)"):
            if frame not in self._known:
                self._known[frame] = self._innermost(frame)
            return self._known[frame]
        if file := one.attribute(r'source_file="([^"]+)"'):
            return _short(file) + ":" + (one.attribute(r"source_line=(\d+)") or "?")
        before = computation.operands(one)[:1] if depth else []
        return self.line(computation, before[0], depth - 1) if before else UNKNOWN

    def _innermost(self, frame: str) -> str:
        ours: list[tuple[str, str]] = []
        first = self._place.get(self._frame.get(frame, ("", ""))[0], ("", ""))
        while frame in self._frame and len(ours) < 2:
            place, frame = self._frame[frame]
            file, line = self._place.get(place, ("", ""))
            if _OURS.match(file) and file not in [other for other, _ in ours]:
                ours.append((file, line))
        if not ours:
            return f"{_short(first[0])}:{first[1]}" if first[0] else UNKNOWN
        names = [f"{_short(file)}:{line}" for file, line in ours]
        return " from ".join([names[0], *(name.removeprefix("lm_research/") for name in names[1:])])


def origin(program: Program, computation: Computation, one: Instruction) -> tuple[Computation, Instruction]:
    """Return the instruction to name as the maker of an array: of an update in place, the one that makes the update.

    A loop writes what its iterations return into stacks, with updates that come from the line of the loop itself.
    """
    inner = program.called(one) if one.opcode == "fusion" else None
    where, made = (inner, inner.root) if inner else (computation, one)
    if made.opcode == "tuple" and (parts := where.operands(made)):
        made = parts[0]
    while made.opcode == "bitcast" and (before := where.operands(made)):
        made = before[0]
    if made.opcode != "dynamic-update-slice":
        return computation, one
    made = where.operands(made)[1]
    for _ in range(12):
        before = where.operands(made)[:1]
        if made.opcode == "parameter" and where is inner:
            where, before = computation, computation.operands(one)[int(made.argument) :][:1]
        if made.opcode not in _RENAMING or not before:
            break
        made = before[0]
    return where, made


def _short(file: str) -> str:
    ours = _OURS.match(file)
    return ours[1] if ours else "/".join(file.split("/")[-2:])


def _section(header: str, name: str) -> str:
    found = re.search(rf"^{name}\n(.*?)(?:\n\n|\Z)", header, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""

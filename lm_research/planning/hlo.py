"""Collectives in the text of an optimized HLO module.

The compiled program mentions one transfer in several places (asynchronous starts and ends, fusions that overlap it with products),
which have the same channel; and a transfer inside a loop happens once per iteration. So transfers are counted by channel, times the
trip counts of the enclosing loops.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALL = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLS = re.compile(r"(?:called_computations|branch_computations)=\{([^}]*)\}")
_ARRAY = re.compile(r"[a-z]+(\d*)\w*\[([\d,]*)\]")  # bits of an element, as in f8e4m3fn[4,8]; pred, a byte, names none
_LIMIT = re.compile(r"s32\[\][^ ]* constant\((\d+)\)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Transfers:
    """All transfers of one kind.

    Attributes:
      kind: one of KINDS.
      channels: number of distinct transfers in the program.
      count: number of transfers in a step.
      array_bytes: bytes of the larger of input and output, summed over the transfers of a step.
      overlapped: number of distinct transfers that the compiler overlaps with other work.
    """

    kind: str
    channels: int
    count: int
    array_bytes: int
    overlapped: int


def transfers(text: str) -> tuple[Transfers, ...]:
    """Extract the communication from `compiled.as_text()`, by kind."""
    bodies = dict(_computations(text))
    turns = _turns(text, bodies)
    found: dict[str, dict[str, tuple[int, int, bool]]] = {kind: {} for kind in KINDS}
    for name, lines in bodies.items():
        for line in lines:
            seen = _transfer(line)
            if seen is None:
                continue
            kind, size, overlapped = seen
            channel = _channel(kind, line)
            times, largest, asynchronous = found[kind].get(channel, (0, 0, False))
            overlapped |= name.startswith("async") or "async_collective" in name
            found[kind][channel] = max(times, turns.get(name, 1)), max(largest, size), asynchronous or overlapped
    return tuple(
        Transfers(
            kind,
            len(channels),
            sum(n for n, _, _ in channels.values()),
            sum(n * size for n, size, _ in channels.values()),
            sum(asynchronous for _, _, asynchronous in channels.values()),
        )
        for kind, channels in found.items()
        if channels
    )


def _transfer(line: str) -> tuple[str, int, bool] | None:
    """Return (kind, bytes of the largest array, whether it is asynchronous) of an instruction, or None if it is not a transfer."""
    match = re.search(rf" ({'|'.join(KINDS)})(-start)?\(", line)
    if not match or "=" not in line[: match.start()]:
        return None
    return (
        match[1],
        max((_bytes(*array) for array in _ARRAY.findall(line[: line.find("channel_id")])), default=0),
        bool(match[2]),
    )


def _channel(kind: str, line: str) -> str:
    """Return the identity of a transfer.

    Transfers of jax.shard_map all have channel 1. So a permutation, which occurs in one place, is identified by its name, and other
    transfers also by the operation that they come from.
    """
    match = re.search(r"channel_id=(\d+)", line)
    if kind == "collective-permute" or not match:
        return line.replace("ROOT", "").strip().split(" ")[0]
    origin = re.search(r'op_name="([^"]*)"', line) if match[1] == "1" else None
    return match[1] + (origin[1] if origin else "")


def _bytes(bits: str, sides: str) -> int:
    return math.prod(int(side) for side in sides.split(",") if side) * int(bits or 8) // 8


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name, lines = match[1], []
        elif line.startswith("}") and name:
            yield name, lines
            name = ""
        elif name:
            lines.append(line)


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Return the trip count of a loop: as annotated, or the number that its condition compares the counter with, or else 1."""
    if annotated := _TRIPS.search(line):
        return int(annotated[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    limits = [int(n) for text in bodies.get(condition[1] if condition else "", ()) for n in _LIMIT.findall(text)]
    return max(limits, default=1)


def _turns(text: str, bodies: dict[str, list[str]]) -> dict[str, int]:
    """Count how often each computation runs in a step; loops multiply."""
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    turns = {entry[1]: 1} if entry else {}
    waiting = list(turns)
    while waiting:
        name = waiting.pop()
        for line in bodies.get(name, ()):
            trips = _trips(line, bodies) if " while(" in line else 1
            callees = _CALL.findall(line) + [
                callee.strip(" %") for group in _CALLS.findall(line) for callee in group.split(",") if callee
            ]
            for callee in callees:
                count = turns[name] * trips
                if turns.get(callee, 0) < count:
                    turns[callee] = count
                    waiting.append(callee)
    return turns

"""Collectives in the text of an optimized HLO module.

The compiled program names one transfer in several places (asynchronous starts and ends, fusions that overlap it with
products), which share a channel; and what stands inside a loop happens once per turn. So transfers are counted by channel, times
the trip counts of the loops around them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "f16": 16,
    "bf16": 16,
    "s64": 64,
    "u64": 64,
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALL = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLS = re.compile(r"(?:called_computations|branch_computations)=\{([^}]*)\}")
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_LIMIT = re.compile(r"s32\[\][^ ]* constant\((\d+)\)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Transfers:
    """All transfers of one kind.

    That is different ones in the program, times they happen in a step, bytes of the largest side of their arrays summed over those, and
    how many of the different ones the compiler overlaps with other work.
    """

    kind: str
    channels: int
    count: int
    array_bytes: int
    overlapped: int


def transfers(text: str) -> tuple[Transfers, ...]:
    """What `compiled.as_text()` says of communication, by kind."""
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
    """(kind, bytes of the largest array named, whether it is asynchronous) of an instruction, if it is a transfer."""
    match = re.search(rf" ({'|'.join(KINDS)})(-start)?\(", line)
    if not match or "=" not in line[: match.start()]:
        return None
    return (
        match[1],
        max((_bytes(*array) for array in _ARRAY.findall(line[: line.find("channel_id")])), default=0),
        bool(match[2]),
    )


def _channel(kind: str, line: str) -> str:
    """What distinguishes a transfer from others.

    Those of jax.shard_map all have channel 1: a permutation, which occurs in one place, is identified by its name, and others by the
    operation they come from too.
    """
    match = re.search(r"channel_id=(\d+)", line)
    if kind == "collective-permute" or not match:
        return line.replace("ROOT", "").strip().split(" ")[0]
    origin = re.search(r'op_name="([^"]*)"', line) if match[1] == "1" else None
    return match[1] + (origin[1] if origin else "")


def _bytes(kind: str, sides: str) -> int:
    return math.prod(int(side) for side in sides.split(",") if side) * _BITS.get(kind, 32) // 8


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
    """Turns of a loop: as written, or the number its condition compares the counter with; 1 where neither is there."""
    if written := _TRIPS.search(line):
        return int(written[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    limits = [int(n) for text in bodies.get(condition[1] if condition else "", ()) for n in _LIMIT.findall(text)]
    return max(limits, default=1)


def _turns(text: str, bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in a step; loops multiply."""
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

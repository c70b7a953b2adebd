"""Bodies of requests: bounded in size and time, and read by one rule at every route."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from lm_research.common.documents import json_value


async def receive(request: Request, most: int, seconds: float) -> bytes:
    """The bytes of a body of at most `most`, which come within some seconds.

    Raises:
      HTTPException: they are more, come too slowly, or are not said to be JSON.
      ClientDisconnect: the client goes before they are there.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send JSON, with content-type: application/json.")
    large = HTTPException(413, f"The body is larger than {most:,} bytes.", {"Connection": "close"})
    said = request.headers.get("content-length", "").lstrip("0")
    if said.isdecimal() and (len(said) > 18 or int(said) > most):
        raise large

    async def read() -> bytes:
        found = bytearray()
        async for piece in request.stream():
            found += piece
            if len(found) > most:
                raise large
        return bytes(found)

    try:
        return await asyncio.wait_for(read(), seconds)
    except TimeoutError as late:
        message = f"The body did not come within {seconds:g} seconds."
        raise HTTPException(408, message, {"Connection": "close"}) from late


def parse(data: bytes) -> Any:
    """The JSON value of a body.

    Raises HTTPException for what is none or too deep, keys that occur twice, halves of characters, and numbers that are not finite.
    """
    try:
        value = json_value(data.decode("utf-8-sig"), unique=True, on_surrogates=_refuse_halves)
        _check_numbers(value)
    except ValueError as problem:
        raise HTTPException(400, f"The body is no JSON: {problem}.") from problem
    return value


def _refuse_halves() -> None:
    raise ValueError("a text has half of a surrogate pair, which is no character")


def _check_numbers(value: Any) -> None:
    """Raises ValueError for NaN and infinities, which JSON has not, but Python's reader takes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it holds a number that is not finite")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(inner)

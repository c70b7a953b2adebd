"""Reading of request bodies, with limits of size and time, by the same rules for every route."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from lm_research.common.documents import json_value


async def receive(request: Request, max_bytes: int, seconds: float) -> bytes:
    """Receive a body.

    Args:
      request: the request.
      max_bytes: maximum size of the body.
      seconds: maximum time until it is complete.

    Raises:
      HTTPException: the body is too large, arrives too slowly, or is not declared as JSON.
      ClientDisconnect: the client disconnects before the body is complete.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send JSON, with content-type: application/json.")
    too_large = HTTPException(413, f"The body is larger than {max_bytes:,} bytes.", {"Connection": "close"})
    declared = request.headers.get("content-length", "").lstrip("0")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > max_bytes):
        raise too_large

    async def read() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise too_large
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), seconds)
    except TimeoutError as error:
        message = f"The body did not arrive within {seconds:g} seconds."
        raise HTTPException(408, message, {"Connection": "close"}) from error


def parse(data: bytes) -> Any:
    """Parse a JSON body.

    Raises:
      HTTPException: the body is not JSON or is nested too deeply, or it contains a repeated key, an unpaired surrogate or a
        number that is not finite.
    """
    try:
        value = json_value(data.decode("utf-8-sig"), unique=True, on_surrogates=_refuse_surrogates)
        _check_numbers(value)
    except ValueError as error:
        raise HTTPException(400, f"The body is not valid JSON: {error}.") from error
    return value


def _refuse_surrogates() -> None:
    raise ValueError("a text has an unpaired surrogate, which is not a character")


def _check_numbers(value: Any) -> None:
    """Raise ValueError for NaN and infinities, which Python's parser accepts although they are not JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it contains a number that is not finite")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(inner)

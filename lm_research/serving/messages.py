"""Bodies of requests, checked: which fields there are, of which types, and what they mean for `generate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm_research.errors import UserError, suggest
from lm_research.pipelines.writing import chat_text
from lm_research.serving.slots import BEST

_NUMBER = (int, float)
_SHARED = {  # field -> type; None is always taken as not given
    "model": str, "max_tokens": int, "temperature": _NUMBER, "top_p": _NUMBER, "top_k": int, "n": int, "stream": bool,
    "stream_options": dict, "stop": (str, list), "presence_penalty": _NUMBER, "frequency_penalty": _NUMBER,
    "repetition_penalty": _NUMBER, "seed": int, "user": str,
}  # fmt: skip
COMPLETION = _SHARED | {"prompt": (str, list), "logprobs": int, "echo": bool}
CHAT = _SHARED | {"messages": list, "max_completion_tokens": int, "logprobs": bool, "top_logprobs": int}
EMBEDDINGS = {"model": str, "input": (str, list), "encoding_format": str, "user": str}
PREDICT = {"model": str, "task": str, "inputs": (str, list, dict), "options": dict}
INSPECT = {"model": str, "text": str}
MOST_CHOICES = 16  # texts of one request, prompts times n


@dataclasses.dataclass
class Order:
    """What a request wants written.

    Attributes:
      prompts: texts, or token ids.
      arguments: of `generate`.
      count: texts of each prompt.
      best: alternatives to each token; -1 without log-probabilities.
      usage: a stream ends with the numbers of tokens.
    """

    prompts: list[Any]
    arguments: dict[str, Any]
    count: int
    stops: list[str]
    best: int
    stream: bool
    usage: bool
    echo: bool = False


def check(body: Any, fields: Mapping[str, Any], needed: tuple[str, ...]) -> dict[str, Any]:
    """The given fields of a body; raises a UserError for unknown or missing ones, and for wrong types."""
    if not isinstance(body, dict):
        raise UserError("The body must be a JSON object.")
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name not in fields:
            raise UserError(f"There is no field {name!r} here. {suggest(name, fields)}")
        kinds = fields[name] if isinstance(fields[name], tuple) else (fields[name],)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{name} is {type(value).__name__}; it must be {wanted}.")
    for name in needed:
        if name not in given:
            raise UserError(f"The field {name!r} is missing.")
    return given


def completion(body: Any) -> Order:
    """Of /v1/completions."""
    given = check(body, COMPLETION, ("prompt",))
    prompt = given["prompt"]
    if isinstance(prompt, list) and prompt and all(is_token(one) for one in prompt):
        prompt = [prompt]
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not prompts or not all(
        isinstance(one, str) or (isinstance(one, list) and all(map(is_token, one))) for one in prompts
    ):
        raise UserError("prompt must be a text, a list of texts, or token ids (a list, or a list of lists).")
    best = given.get("logprobs", -1)
    if "logprobs" in given and not 0 <= best <= 5:
        raise UserError(f"logprobs is {best}; it must be from 0 to 5.")
    if given.get("echo") and "logprobs" in given:
        raise UserError("echo does not go with logprobs here: log-probabilities are those of new tokens.")
    return _order(given, prompts, best, 16, given.get("echo", False))


def chat(body: Any, lm: Any) -> Order:
    """Of /v1/chat/completions."""
    given = check(body, CHAT, ("messages",))
    for one in given["messages"] or [None]:
        if not isinstance(one, dict) or not all(isinstance(one.get(name), str) for name in ("role", "content")):
            raise UserError('messages must be a list of {"role": TEXT, "content": TEXT} that is not empty.')
    best = given.get("top_logprobs", 0) if given.get("logprobs") else -1
    if "top_logprobs" in given and not (given.get("logprobs") and 0 <= best <= BEST):
        raise UserError(f"top_logprobs must be from 0 to {BEST}, and needs logprobs: true.")
    given["max_tokens"] = given.get("max_completion_tokens", given.get("max_tokens", 128))
    return _order(given, [chat_text(lm, given["messages"])], best, 128)


def _order(given: dict[str, Any], prompts: list[Any], best: int, usual: int, echo: bool = False) -> Order:
    count = given.get("n", 1)
    if not 1 <= count <= MOST_CHOICES or count * len(prompts) > MOST_CHOICES:
        raise UserError(f"prompts times n are {count * len(prompts)}; from 1 to {MOST_CHOICES} texts a request.")
    stops = given.get("stop", [])
    stops = [stops] if isinstance(stops, str) else stops
    if len(stops) > 4 or not all(isinstance(one, str) and 0 < len(one) <= 200 for one in stops):
        raise UserError("stop must be up to 4 texts of 1 to 200 characters.")
    names = ("top_p", "top_k", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed")
    arguments = {name: given[name] for name in names if name in given}
    if not -(2**63) <= given.get("seed", 0) < 2**63:
        raise UserError("seed must fit into 64 bits.")
    if given.get("top_k", 0) >= 2**31:
        raise UserError("top_k must fit into 32 bits.")
    for name, most in (("temperature", 100), ("presence_penalty", 100), ("frequency_penalty", 100)):
        if not -most <= given.get(name, 0) <= most or (name == "temperature" and given.get(name, 0) < 0):
            raise UserError(
                f"{name} is {given[name]}; it must be from {0 if name == 'temperature' else -most} to {most}."
            )
    arguments["max_new_tokens"] = given.get("max_tokens", usual)
    temperature = given.get("temperature", 1.0)
    arguments["do_sample"] = temperature > 0
    if temperature > 0:
        arguments["temperature"] = max(float(temperature), 1e-4)
    else:
        arguments.pop("top_p", None)
    usage = bool((given.get("stream_options") or {}).get("include_usage"))
    return Order(prompts, arguments, count, stops, best, given.get("stream", False), usage, echo)


def is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""Schemas of request bodies: their fields, types and ranges, and the arguments of `generate` that they specify."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lm_research.errors import UserError, suggest
from lm_research.serving.batcher import Conversation
from lm_research.serving.sequential_worker import ARGUMENTS
from lm_research.serving.slots import MAX_BIASES, MAX_TOP_LOGPROBS, NEUTRAL
from lm_research.tokenizers.chat_template import chat_text

_NUMBER = (int, float)
_SHARED = {  # field -> type; null counts as not given
    "model": str,
    "max_tokens": int,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "n": int,
    "stream": bool,
    "stream_options": dict,
    "stop": (str, list),
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "logit_bias": dict,
    "seed": int,
    # Fields of `generate` that OpenAI does not have: those of the slots, then those of the sequential worker.
    "top_k": int,
    "min_p": _NUMBER,
    "typical_p": _NUMBER,
    "epsilon_cutoff": _NUMBER,
    "repetition_penalty": _NUMBER,
    "min_tokens": int,
    "num_beams": int,
    "num_beam_groups": int,
    "diversity_penalty": _NUMBER,
    "length_penalty": _NUMBER,
    "early_stopping": (bool, str),
    "force_words_ids": list,
    "no_repeat_ngram_size": int,
    "bad_words_ids": list,
    "src_lang": str,
    "tgt_lang": str,
}
# Fields about storage, accounting or speed that have no effect here: accepted and ignored.
IGNORED = {
    "user": str,
    "metadata": dict,
    "store": bool,
    "service_tier": str,
    "safety_identifier": str,
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
    "prompt_cache_options": dict,
    "reasoning_effort": str,
    "reasoning": dict,
    "verbosity": str,
    "prediction": dict,
    "parallel_tool_calls": bool,
    "request_id": str,
    "priority": int,
    "cache_salt": str,
    "include_reasoning": bool,
}
COMPLETION = _SHARED | {
    "prompt": (str, list),
    "logprobs": int,
    "echo": bool,
    "best_of": int,
    "max_completion_tokens": int,
}
CHAT = _SHARED | {"messages": list, "max_completion_tokens": int, "logprobs": bool, "top_logprobs": int}
EMBEDDINGS = {
    "model": str,
    "input": (str, list),
    "encoding_format": str,
    "prompt_name": str,
    "prompt": str,  # of `lm.embed`; OpenAI does not have it
}
PREDICT = {"model": str, "task": str, "inputs": (str, list, dict), "options": dict}
INSPECT = {"model": str, "text": str}
MAX_CHOICES = 16  # texts of one request: prompts times n, best_of or num_beams
MAX_MESSAGES = 1024  # of a conversation, and parts of a message
MAX_STOPS, MAX_STOP_LENGTH = 4, 200  # stop strings, and characters of each
# Banned and forced words: maximum number of words, tokens of each, and tokens of all.
MAX_WORDS = {"bad_words_ids": (1024, 64, 4096), "force_words_ids": (16, 16, 64)}
_NAMES = ("model", "src_lang", "tgt_lang", "prompt_name", "task", "encoding_format", "early_stopping")
_MAX_NAME_LENGTH = 200  # characters of these
# Unsupported fields of OpenAI's and vLLM's formats: their values without effect, and why other values are refused.
_TOOLS = "tool calls are not parsed: describe tools in a message"
_TEMPLATE = "conversations are formatted by the model's own template"
_JSON = "no grammar enforces JSON: request it in a message and check the response, or force words with force_words_ids"
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "these models generate forwards only"),
    "tools": (([],), _TOOLS),
    "tool_choice": (("none", "auto"), _TOOLS),
    "functions": (([],), _TOOLS),
    "function_call": (("none", "auto"), _TOOLS),
    "response_format": (({"type": "text"},), _JSON),
    "structured_outputs": ((), _JSON),
    "guided_json": ((), _JSON),
    "guided_regex": ((), _JSON),
    "guided_choice": ((), _JSON),
    "guided_grammar": ((), _JSON),
    "modalities": ((["text"],), "only text is generated"),
    "audio": ((), "only text is generated"),
    "web_search_options": ((), "nothing is looked up"),
    "moderation": ((), "nothing is moderated"),
    "dimensions": ((), "embeddings have the model's own width"),
    "penalty_alpha": ((0,), "contrastive search is not supported; use `lm.generate`"),
    "assistant_model": ((), "this server has one model"),
    "use_beam_search": ((False,), "set num_beams"),
    "ignore_eos": ((False,), "texts end at the model's end tokens"),
    "stop_token_ids": (([],), "texts end at the model's own end tokens, or at stop"),
    "include_stop_str_in_output": ((False,), "texts end before a stop text"),
    "skip_special_tokens": ((True,), "special tokens are not part of texts"),
    "spaces_between_special_tokens": ((True,), "special tokens are not part of texts"),
    "add_special_tokens": ((True,), "special tokens are added as in training"),
    "truncate_prompt_tokens": ((-1,), "prompts are not truncated"),
    "prompt_logprobs": ((0,), "set echo and logprobs in /v1/completions"),
    "return_tokens_as_token_ids": ((False,), "tokens are returned as texts"),
    "return_token_ids": ((False,), "tokens are returned as texts"),
    "bad_words": (([],), "set bad_words_ids, their tokens"),
    "echo": ((False,), "a chat response does not include the messages: set echo in /v1/completions"),
    "best_of": ((1,), "set n, or best_of in /v1/completions"),
    "prompt_embeds": ((), "only text and token ids are read"),
    "thinking_token_budget": ((), "there is no separate reasoning: set max_tokens"),
    "repetition_detection": ((), "set no_repeat_ngram_size"),
    "structural_tag": ((), _JSON),
    "kv_transfer_params": ((), "caches stay on this server"),
    "allowed_token_ids": (([],), "set logit_bias or bad_words_ids"),
    "add_generation_prompt": ((True,), _TEMPLATE),
    "continue_final_message": ((False,), _TEMPLATE),
    "chat_template": ((), _TEMPLATE),
    "chat_template_kwargs": (({},), _TEMPLATE),
    "documents": (([],), _TEMPLATE),
    "mm_processor_kwargs": (({},), "only text is read"),
    "media_io_kwargs": (({},), "only text is read"),
}


@dataclasses.dataclass
class CompletionRequest:
    """A parsed request for completions.

    Attributes:
      prompts: texts, or token ids.
      arguments: arguments of `generate`.
      count: number of texts generated for each prompt.
      num_returned: number of most likely texts returned for each prompt.
      stops: stop strings.
      top_logprobs: number of alternatives to each token; -1 without log-probabilities.
      stream: whether to send server-sent events.
      include_usage: whether a stream ends with the numbers of tokens.
      echo: whether to return prompts before their texts, with their tokens' log-probabilities if requested.
      is_chat: whether it is a chat completion, whose texts do not continue their prompts.
      bias: values added to the logits of tokens.
      sequential: whether it needs `generate`, see sequential_worker.py.
      echo_only: whether to generate nothing (max_tokens 0).
      has_max_tokens: whether max_tokens is given; a default is lowered to what fits.
    """

    prompts: list[Any]
    arguments: dict[str, Any]
    count: int
    num_returned: int
    stops: list[str]
    top_logprobs: int
    stream: bool
    include_usage: bool
    echo: bool
    is_chat: bool
    bias: dict[int, float]
    sequential: bool
    echo_only: bool
    has_max_tokens: bool


@contextlib.contextmanager
def prefix_errors(field: str, others: Collection[str] = ()) -> Iterator[None]:
    """Put the name of a field before the message of a UserError that mentions neither it nor one of `others`."""
    try:
        yield
    except UserError as error:
        if {field, *others} & set(re.findall(r"\w+", str(error))):
            raise
        raise UserError(f"{field}: {error}") from error


def check(body: Any, fields: Mapping[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a body that have an effect.

    Args:
      body: the JSON value.
      fields: valid fields and their types.
      required: fields that must be given.

    Raises:
      UserError: a field is unknown, unsupported or missing, or has a wrong type.
    """
    if not isinstance(body, dict):
        raise UserError("The body must be a JSON object.")
    types = {**fields, **IGNORED}
    given = {name: value for name, value in body.items() if value is not None}
    for name in [name for name in given if name in UNSUPPORTED and name not in fields]:
        neutral, reason = UNSUPPORTED[name]
        if given.pop(name) not in neutral:
            raise UserError(f"The field {name!r} is not supported: {reason}. Leave it out.")
    for name, value in given.items():
        if name not in types:
            raise UserError(f"There is no field {name[:80]!r} here. {suggest(name[:80], types)}")
        valid = types[name] if isinstance(types[name], tuple) else (types[name],)
        if not isinstance(value, valid) or (isinstance(value, bool) and bool not in valid):
            expected = " or ".join(one.__name__ for one in valid)
            raise UserError(f"{name} is {type(value).__name__}; it must be {expected}.")
        if isinstance(value, float) and not math.isfinite(value):  # such as 1e999
            raise UserError(f"{name} must be a finite number.")
        if valid == (int,) and not -(2**63) <= value < 2**63:
            raise UserError(f"{name} must fit into 64 bits.")
        if isinstance(value, str) and name in _NAMES and len(value) > _MAX_NAME_LENGTH:
            raise UserError(f"{name} has {len(value)} characters; it may have at most {_MAX_NAME_LENGTH}.")
    for name in required:
        if name not in given:
            raise UserError(f"The field {name!r} is missing.")
    return {name: value for name, value in given.items() if name not in IGNORED}


def completion(body: Any) -> CompletionRequest:
    """Parse a body of /v1/completions."""
    given = check(body, COMPLETION, ("prompt",))
    prompts = _texts("prompt", given["prompt"])
    best = given.get("logprobs", -1)
    if "logprobs" in given and not 0 <= best <= 5:
        raise UserError(f"logprobs is {best}; it must be from 0 to 5.")
    if given.get("echo") and "logprobs" in given and given.get("stream"):
        raise UserError("echo with logprobs is not supported with stream. Set stream to false.")
    return _parse(given, prompts, best, 16)


def inputs(given: Any) -> list[str] | list[list[int]]:
    """Parse the field `input` of /v1/embeddings: texts, or token ids of each."""
    texts = _texts("input", given)
    if len({type(text) for text in texts}) > 1:
        raise UserError("input has both texts and token ids. Send only one kind in a request.")
    return texts


def _texts(name: str, given: Any) -> list[Any]:
    """Return a list of texts or of token ids, given one or several."""
    if isinstance(given, list) and given and all(is_token(item) for item in given):
        given = [given]
    texts = [given] if isinstance(given, str) else given
    if not texts or not all(
        isinstance(text, str) or (isinstance(text, list) and all(map(is_token, text))) for text in texts
    ):
        raise UserError(f"{name} must be a text, a list of texts, or token ids (a list, or a list of lists).")
    return texts


def chat(body: Any, lm: Any) -> CompletionRequest:
    """Parse a body of /v1/chat/completions, and format its messages with the model's template."""
    given = check(body, CHAT, ("messages",))
    if len(given["messages"]) > MAX_MESSAGES:
        raise UserError(f"messages has {len(given['messages'])} messages; at most {MAX_MESSAGES} are allowed.")
    messages = [_message(message) for message in given["messages"] or [None]]
    best = given.get("top_logprobs", 0) if given.get("logprobs") else -1
    if "top_logprobs" in given and not (given.get("logprobs") and 0 <= best <= MAX_TOP_LOGPROBS):
        raise UserError(f"top_logprobs must be from 0 to {MAX_TOP_LOGPROBS}, and needs logprobs: true.")
    with prefix_errors("messages"):
        text = chat_text(lm.tokenizer, messages)
    return _parse(given, [Conversation(text)], best, 128)


def _message(message: Any) -> dict[str, str]:
    """Return a message with its text, joined if it is given in parts."""
    if isinstance(message, dict) and isinstance(message.get("content"), list) and message["content"]:
        parts = message["content"]
        if len(parts) > MAX_MESSAGES:
            raise UserError(f"A message of messages has {len(parts)} parts; at most {MAX_MESSAGES} are allowed.")
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
            raise UserError('Parts of messages must be {"type": "text", "text": TEXT}: only text is read here.')
        texts = [part.get("text") for part in parts]
        message = {**message, "content": "".join(texts) if all(isinstance(text, str) for text in texts) else None}
    if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in ("role", "content")):
        raise UserError('messages must be a list of {"role": TEXT, "content": TEXT} that is not empty.')
    return message


def _parse(given: dict[str, Any], prompts: list[Any], top_logprobs: int, max_tokens: int) -> CompletionRequest:
    """Parse the fields that both kinds of completions share; `max_tokens` is the default of that field."""
    num_returned, stream = given.get("n", 1), given.get("stream", False)
    count, beams = given.get("best_of", num_returned), given.get("num_beams", 1)
    counts = (num_returned, count, beams)
    if min(counts) < 1 or max(counts) * len(prompts) > MAX_CHOICES:
        name = next((name for name in ("n", "best_of", "num_beams") if name in given), "n")
        name = "prompt" if len(prompts) > MAX_CHOICES else name
        raise UserError(
            f"{name} requests too many or too few texts: prompts times n, best_of or num_beams must be from 1 to {MAX_CHOICES} per "
            "request."
        )
    if count < num_returned:
        raise UserError(f"best_of is {count}, but n is {num_returned}: n of best_of texts are returned. Lower n.")
    if count > num_returned and (stream or beams > 1):
        raise UserError("best_of compares complete texts: it works neither with stream nor with num_beams.")
    stops = given.get("stop", [])
    stops = [stops] if isinstance(stops, str) else stops
    if len(stops) > MAX_STOPS or not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise UserError(f"stop must be up to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters.")
    if "max_completion_tokens" in given:
        given["max_tokens"] = given["max_completion_tokens"]
    arguments = _arguments(given, max_tokens)
    sequential = any(given.get(name, neutral) != neutral for name, neutral in ARGUMENTS.items())
    if beams > 1 and stops:
        raise UserError("stop does not work with num_beams: beams end at the model's own end tokens.")
    if beams > 1 and top_logprobs > 0:
        raise UserError(
            "With num_beams, only the log-probabilities of the chosen tokens are available, not those of others."
        )
    if sequential:
        arguments |= {name: given[name] for name in ARGUMENTS if name in given}
    echo_only = given.get("max_tokens") == 0
    if echo_only and not given.get("echo"):
        raise UserError("max_tokens is 0, so nothing would be generated: it requires echo=true of /v1/completions.")
    return CompletionRequest(
        prompts=prompts,
        arguments=arguments,
        count=count,
        num_returned=num_returned,
        stops=stops,
        top_logprobs=top_logprobs,
        stream=stream,
        include_usage=bool((given.get("stream_options") or {}).get("include_usage")),
        echo=given.get("echo", False),
        is_chat="messages" in given,
        bias=_bias(given.get("logit_bias", {})),
        sequential=sequential,
        echo_only=echo_only,
        has_max_tokens="max_tokens" in given,
    )


def _arguments(given: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """Return the arguments of `generate` that the slots support."""
    if not -(2**63) <= given.get("seed", 0) < 2**63:
        raise UserError("seed must fit into 64 bits.")
    if not given.get("top_k", 0) < 2**31 or not given.get("no_repeat_ngram_size", 0) < 2**31:
        raise UserError("top_k and no_repeat_ngram_size must fit into 32 bits.")
    ranges: dict[str, tuple[float, float]] = dict.fromkeys(
        ("presence_penalty", "frequency_penalty", "diversity_penalty", "length_penalty"), (-100, 100)
    )
    ranges |= {
        "max_tokens": (0, 2**31 - 1),
        "temperature": (0, 100),
        "repetition_penalty": (0.01, 100),
        "min_tokens": (0, 10**6),
        "num_beam_groups": (1, MAX_CHOICES),
    }
    for name, (low, high) in ranges.items():
        if name in given and not low <= given[name] <= high:
            raise UserError(f"{name} is {given[name]}; it must be from {low} to {high}.")
    for name in MAX_WORDS:
        _check_words(name, given.get(name, [[0]]))
    names = ["presence_penalty", "frequency_penalty", "repetition_penalty", "seed"]
    temperature = given.get("temperature", 1.0 if given.get("num_beams", 1) == 1 else 0.0)
    if temperature > 0:
        names += NEUTRAL
    arguments = {name: given[name] for name in names if name in given}
    if arguments.get("top_k") == -1:  # vLLM's neutral value
        arguments["top_k"] = 0
    arguments |= {"max_new_tokens": given.get("max_tokens", max_tokens) or 1, "do_sample": temperature > 0}
    if temperature > 0:
        arguments["temperature"] = max(float(temperature), 1e-4)
    if "min_tokens" in given:
        arguments["min_new_tokens"] = given["min_tokens"]
    return arguments


def _check_words(name: str, words: list[Any]) -> None:
    """Raise a UserError unless `words` is a list of words, within the limits."""
    if not words or not all(isinstance(word, list) and word and all(map(is_token, word)) for word in words):
        raise UserError(f"{name} must be a list of lists of token ids, one for each word.")
    max_words, max_length, max_tokens = limits = MAX_WORDS[name]
    sizes = len(words), max(map(len, words)), sum(map(len, words))
    for size, limit, what in zip(sizes, limits, ("words", "tokens in a word", "tokens in all words"), strict=True):
        if size > limit:
            raise UserError(
                f"{name} has {size} {what}; at most {limit} are allowed ({max_words} words, {max_length} tokens in each, {max_tokens} "
                "in all)."
            )


def _bias(given: dict[str, Any]) -> dict[int, float]:
    """Parse logit_bias; raise a UserError if it is not valid."""
    if len(given) > MAX_BIASES:
        raise UserError(f"logit_bias has {len(given)} tokens; at most {MAX_BIASES} are allowed.")
    for token, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and -100 <= value <= 100
        if not (token.isascii() and token.isdigit() and len(token) < 10) or not number:
            raise UserError(
                f"logit_bias must have numbers from -100 to 100 by token id, not {str(value)[:80]} for {token[:80]!r}."
            )
    return {int(token): float(value) for token, value in given.items()}


def is_token(value: Any) -> bool:
    """Return whether a JSON value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)

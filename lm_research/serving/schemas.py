"""Bodies of requests, checked: which fields there are, of which types, and what they mean for `generate`."""

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
from lm_research.serving.slots import BEST, BIASES, NEUTRAL
from lm_research.tokenizers.chat_template import chat_text

_NUMBER = (int, float)
_SHARED = {  # field -> type; None is always taken as not given
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
    # Beyond OpenAI's, under the names of `generate`: what slots do, then what runs alone.
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
# What says how to keep, count or speed up a request, and asks for nothing here: taken and not looked at.
HARMLESS = {
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
    "prompt": str,  # beyond OpenAI's, of `lm.embed`
}
PREDICT = {"model": str, "task": str, "inputs": (str, list, dict), "options": dict}
INSPECT = {"model": str, "text": str}
MOST_CHOICES = 16  # texts of one request: prompts times n, best_of or num_beams
MOST_MESSAGES = 1024  # of a conversation, and parts of its messages
MOST_STOPS, LONGEST_STOP = 4, 200  # texts, and characters of each
# Words that are banned or forced: how many, tokens of each, and tokens of all together.
WORDS = {"bad_words_ids": (1024, 64, 4096), "force_words_ids": (16, 16, 64)}
_NAMES = ("model", "src_lang", "tgt_lang", "prompt_name", "task", "encoding_format", "early_stopping")
_LONGEST_NAME = 200  # characters of these
# Fields of OpenAI's format, and of vLLM's, that nothing here does: the values that ask for nothing, and why others are refused.
_TOOLS = "calls of tools are not parsed: describe tools in a message"
_TEMPLATE = "conversations are written by the model's own template"
_JSON = "no grammar holds the model to JSON: ask for it in a message and check what comes, or force words with force_words_ids"
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "these models write forwards only"),
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
    "modalities": ((["text"],), "only text is written"),
    "audio": ((), "only text is written"),
    "web_search_options": ((), "nothing is looked up"),
    "moderation": ((), "nothing is moderated"),
    "dimensions": ((), "embeddings have the model's own width"),
    "penalty_alpha": ((0,), "contrastive search looks at all candidates of a step at once; use `lm.generate`"),
    "assistant_model": ((), "this server has one model"),
    "use_beam_search": ((False,), "ask for num_beams"),
    "ignore_eos": ((False,), "texts end where the model ends them"),
    "stop_token_ids": (([],), "texts end at the model's own end tokens, or at stop"),
    "include_stop_str_in_output": ((False,), "texts end before a stop text"),
    "skip_special_tokens": ((True,), "special tokens are not written"),
    "spaces_between_special_tokens": ((True,), "special tokens are not written"),
    "add_special_tokens": ((True,), "texts are read as the model has learned them"),
    "truncate_prompt_tokens": ((-1,), "prompts are read whole"),
    "prompt_logprobs": ((0,), "ask for echo with logprobs in /v1/completions"),
    "return_tokens_as_token_ids": ((False,), "tokens are answered as texts"),
    "return_token_ids": ((False,), "tokens are answered as texts"),
    "bad_words": (([],), "ask for bad_words_ids, their tokens"),
    "echo": ((False,), "answers stand alone: ask for echo in /v1/completions"),
    "best_of": ((1,), "ask for n answers, or for best_of in /v1/completions"),
    "prompt_embeds": ((), "only text and token ids are read"),
    "thinking_token_budget": ((), "nothing is thought aside: ask for max_tokens"),
    "repetition_detection": ((), "ask for no_repeat_ngram_size"),
    "structural_tag": ((), _JSON),
    "kv_transfer_params": ((), "caches stay on this server"),
    "allowed_token_ids": (([],), "ask for logit_bias or bad_words_ids"),
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
    """What a request wants written.

    Attributes:
      prompts: texts, or token ids.
      arguments: of `generate`.
      count: texts of each prompt, of which the likeliest `kept` are answered.
      best: alternatives to each token; -1 without log-probabilities.
      usage: a stream ends with the numbers of tokens.
      echo: prompts are given back before their texts, with their tokens' log-probabilities if there are any.
      answers: texts stand alone instead of going on from their prompts.
      bias: of tokens, added to their scores.
      alone: it needs `generate`, see alone.py.
      silent: nothing is to be written (max_tokens 0), only echoed.
      sized: max_tokens is given; else there is a usual number, or as many as there is room for.
    """

    prompts: list[Any]
    arguments: dict[str, Any]
    count: int
    kept: int
    stops: list[str]
    best: int
    stream: bool
    usage: bool
    echo: bool
    answers: bool
    bias: dict[int, float]
    alone: bool
    silent: bool
    sized: bool


@contextlib.contextmanager
def about(field: str, others: Collection[str] = ()) -> Iterator[None]:
    """Puts a request's field before mistakes that are told of it in other words, and that name none of `others` either."""
    try:
        yield
    except UserError as mistake:
        if {field, *others} & set(re.findall(r"\w+", str(mistake))):
            raise
        raise UserError(f"{field}: {mistake}") from mistake


def check(body: Any, fields: Mapping[str, Any], needed: tuple[str, ...]) -> dict[str, Any]:
    """The given fields of a body; raises a UserError for unknown or missing ones, and for wrong types."""
    if not isinstance(body, dict):
        raise UserError("The body must be a JSON object.")
    known = {**fields, **HARMLESS}
    given = {name: value for name, value in body.items() if value is not None}
    for name in [name for name in given if name in REFUSED and name not in fields]:
        idle, reason = REFUSED[name]
        if given.pop(name) not in idle:
            raise UserError(f"The field {name!r} is not served: {reason}. Leave it out.")
    for name, value in given.items():
        if name not in known:
            raise UserError(f"There is no field {name[:80]!r} here. {suggest(name[:80], known)}")
        kinds = known[name] if isinstance(known[name], tuple) else (known[name],)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{name} is {type(value).__name__}; it must be {wanted}.")
        if isinstance(value, float) and not math.isfinite(value):  # such as 1e999
            raise UserError(f"{name} must be a finite number.")
        if kinds == (int,) and not -(2**63) <= value < 2**63:
            raise UserError(f"{name} must fit into 64 bits.")
        if isinstance(value, str) and name in _NAMES and len(value) > _LONGEST_NAME:
            raise UserError(f"{name} has {len(value)} characters; it names something with at most {_LONGEST_NAME}.")
    for name in needed:
        if name not in given:
            raise UserError(f"The field {name!r} is missing.")
    return {name: value for name, value in given.items() if name not in HARMLESS}


def completion(body: Any) -> CompletionRequest:
    """Of /v1/completions."""
    given = check(body, COMPLETION, ("prompt",))
    prompts = _texts("prompt", given["prompt"])
    best = given.get("logprobs", -1)
    if "logprobs" in given and not 0 <= best <= 5:
        raise UserError(f"logprobs is {best}; it must be from 0 to 5.")
    if given.get("echo") and "logprobs" in given and given.get("stream"):
        raise UserError("echo with logprobs comes in one piece: it does not go with stream.")
    return _order(given, prompts, best, 16)


def inputs(given: Any) -> list[str] | list[list[int]]:
    """What /v1/embeddings is to read: texts, or token ids of each."""
    found = _texts("input", given)
    if len({type(one) for one in found}) > 1:
        raise UserError("input has texts and token ids. Ask for either in a request.")
    return found


def _texts(name: str, given: Any) -> list[Any]:
    """A text, several, or token ids of one or several, as a list of them."""
    if isinstance(given, list) and given and all(is_token(one) for one in given):
        given = [given]
    found = [given] if isinstance(given, str) else given
    if not found or not all(
        isinstance(one, str) or (isinstance(one, list) and all(map(is_token, one))) for one in found
    ):
        raise UserError(f"{name} must be a text, a list of texts, or token ids (a list, or a list of lists).")
    return found


def chat(body: Any, lm: Any) -> CompletionRequest:
    """Of /v1/chat/completions."""
    given = check(body, CHAT, ("messages",))
    if len(given["messages"]) > MOST_MESSAGES:
        raise UserError(f"messages has {len(given['messages'])} messages; at most {MOST_MESSAGES} are read.")
    said = [_message(one) for one in given["messages"] or [None]]
    best = given.get("top_logprobs", 0) if given.get("logprobs") else -1
    if "top_logprobs" in given and not (given.get("logprobs") and 0 <= best <= BEST):
        raise UserError(f"top_logprobs must be from 0 to {BEST}, and needs logprobs: true.")
    with about("messages"):
        text = chat_text(lm.tokenizer, said)
    return _order(given, [Conversation(text)], best, 128)


def _message(one: Any) -> dict[str, str]:
    """A message with its text, which may come in parts."""
    if isinstance(one, dict) and isinstance(one.get("content"), list) and one["content"]:
        parts = one["content"]
        if len(parts) > MOST_MESSAGES:
            raise UserError(f"A message of messages has {len(parts)} parts; at most {MOST_MESSAGES} are read.")
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
            raise UserError('Parts of messages must be {"type": "text", "text": TEXT}: only text is read here.')
        texts = [part.get("text") for part in parts]
        one = {**one, "content": "".join(texts) if all(isinstance(text, str) for text in texts) else None}
    if not isinstance(one, dict) or not all(isinstance(one.get(name), str) for name in ("role", "content")):
        raise UserError('messages must be a list of {"role": TEXT, "content": TEXT} that is not empty.')
    return one


def _order(given: dict[str, Any], prompts: list[Any], best: int, usual: int) -> CompletionRequest:
    kept, stream = given.get("n", 1), given.get("stream", False)
    count, beams = given.get("best_of", kept), given.get("num_beams", 1)
    name = (
        "prompt"
        if len(prompts) > MOST_CHOICES
        else next((one for one in ("n", "best_of", "num_beams") if one in given), "n")
    )
    if not 1 <= kept or not 1 <= count or not 1 <= beams or max(count, kept, beams) * len(prompts) > MOST_CHOICES:
        raise UserError(
            f"{name} asks for too many or too few texts: prompts times n, best_of or num_beams must be from 1 to {MOST_CHOICES} a request."
        )
    if count < kept:
        raise UserError(f"best_of is {count}, but n is {kept}: the n likeliest of best_of texts are answered.")
    if count > kept and (stream or beams > 1):
        raise UserError("best_of is known when all its texts are: it goes neither with stream nor with num_beams.")
    stops = given.get("stop", [])
    stops = [stops] if isinstance(stops, str) else stops
    if len(stops) > MOST_STOPS or not all(isinstance(one, str) and 0 < len(one) <= LONGEST_STOP for one in stops):
        raise UserError(f"stop must be up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters.")
    if "max_completion_tokens" in given:
        given["max_tokens"] = given["max_completion_tokens"]
    arguments = _arguments(given, usual)
    alone = any(given.get(name, idle) != idle for name, idle in ARGUMENTS.items())
    if beams > 1 and stops:
        raise UserError("stop does not go with num_beams: beams end at the model's own end tokens.")
    if beams > 1 and best > 0:
        raise UserError("With num_beams log-probabilities are those of the chosen tokens: ask for no others.")
    if alone:
        arguments |= {name: given[name] for name in ARGUMENTS if name in given}
    silent = given.get("max_tokens") == 0
    if silent and not given.get("echo"):
        raise UserError(
            "max_tokens is 0, so nothing would be written: it goes with echo=true of /v1/completions alone."
        )
    usage = bool((given.get("stream_options") or {}).get("include_usage"))
    bias, echo = _bias(given.get("logit_bias", {})), given.get("echo", False)
    answers = "messages" in given
    return CompletionRequest(
        prompts,
        arguments,
        count,
        kept,
        stops,
        best,
        stream,
        usage,
        echo,
        answers,
        bias,
        alone,
        silent,
        "max_tokens" in given,
    )


def _arguments(given: dict[str, Any], usual: int) -> dict[str, Any]:
    """Arguments of `generate` that slots know of."""
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
        "num_beam_groups": (1, MOST_CHOICES),
    }
    for name, (least, most) in ranges.items():
        if name in given and not least <= given[name] <= most:
            raise UserError(f"{name} is {given[name]}; it must be from {least} to {most}.")
    for name in WORDS:
        _check_words(name, given.get(name, [[0]]))
    names = ["presence_penalty", "frequency_penalty", "repetition_penalty", "seed"]
    temperature = given.get("temperature", 1.0 if given.get("num_beams", 1) == 1 else 0.0)
    if temperature > 0:
        names += NEUTRAL
    arguments = {name: given[name] for name in names if name in given}
    if arguments.get("top_k") == -1:  # as vLLM and its clients say that there is none
        arguments["top_k"] = 0
    arguments |= {"max_new_tokens": given.get("max_tokens", usual) or 1, "do_sample": temperature > 0}
    if temperature > 0:
        arguments["temperature"] = max(float(temperature), 1e-4)
    if "min_tokens" in given:
        arguments["min_new_tokens"] = given["min_tokens"]
    return arguments


def _check_words(name: str, words: list[Any]) -> None:
    """Raises a UserError for what is no list of words, or too many."""
    if not words or not all(isinstance(one, list) and one and all(map(is_token, one)) for one in words):
        raise UserError(f"{name} must be a list of lists of token ids, one for each word.")
    most, longest, tokens = WORDS[name]
    found = len(words), max(map(len, words)), sum(map(len, words))
    for number, limit, what in zip(
        found, WORDS[name], ("words", "tokens in a word", "tokens in all words"), strict=True
    ):
        if number > limit:
            raise UserError(
                f"{name} has {number} {what}; at most {limit} are taken ({most} words, {longest} tokens in each, {tokens} in all)."
            )


def _bias(given: dict[str, Any]) -> dict[int, float]:
    """logit_bias by token; raises a UserError if it is not one."""
    if len(given) > BIASES:
        raise UserError(f"logit_bias has {len(given)} tokens; at most {BIASES} may have one.")
    for token, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and -100 <= value <= 100
        if not (token.isascii() and token.isdigit() and len(token) < 10) or not number:
            raise UserError(
                f"logit_bias must have numbers from -100 to 100 by token id, not {str(value)[:80]} for {token[:80]!r}."
            )
    return {int(token): float(value) for token, value in given.items()}


def is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""Arguments of `generate`: names and meanings of transformers, defaults from a model's files, checks of values and combinations."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import pathlib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm_research.common import paths
from lm_research.common.disk import write_atomically
from lm_research.common.documents import Object, read_json, short
from lm_research.common.texts import is_text
from lm_research.errors import PretrainedError, UserError, suggest

LOG = logging.getLogger("lm_research")
FILE = "generation_config.json"

Tokens = int | Sequence[int] | None


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Options of text generation.

    Attributes:
      max_new_tokens, max_length: limit on new tokens, or on prompt (with padding) and new tokens together; 20 new tokens if
        neither is given. max_new_tokens overrides max_length.
      min_new_tokens, min_length: suppress end tokens until this many tokens.
      do_sample: draw tokens instead of taking the most likely one.
      num_beams: number of beams of beam search; 1 disables it.
      num_return_sequences: number of texts per prompt.
      seed: seed of sampling, or a list with one per prompt; None picks a random one.

      temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff: filters of sampling, see sampling.py.
      repetition_penalty, encoder_repetition_penalty, presence_penalty, frequency_penalty, no_repeat_ngram_size,
        encoder_no_repeat_ngram_size, bad_words_ids, sequence_bias, suppress_tokens, begin_suppress_tokens,
        forced_bos_token_id, forced_eos_token_id, exponential_decay_length_penalty, renormalize_logits: see logits_processors.py.
        sequence_bias is pairs of token ids and a number, [[[500], 3.0], [[7, 8], -2.0]], or in Python a dict {(500,): 3.0}.

      length_penalty: finished beams are ranked by log-probability / length ^ length_penalty.
      early_stopping: when beam search stops: True as soon as num_beams texts are finished, False when an improvement is
        unlikely, "never" when none is possible.
      num_beam_groups, diversity_penalty: diverse beam search.
      force_words_ids: token sequences that the new text must contain (beam search only).
      penalty_alpha: above 0, contrastive search over the top_k most likely tokens.
      num_assistant_tokens: tokens that the draft model proposes per round of speculative decoding.

      eos_token_id: one or several tokens that end a text. pad_token_id: fills sequences after their end; masked in a
        decoder's input_ids without an attention mask, unless it also ends texts.
      bos_token_id: the prompt if none is given. decoder_start_token_id: first token of an encoder-decoder's output, or a list with
        one for each prompt.
      src_lang, tgt_lang: languages of the prompts and of the output, codes such as ro_RO, for tokenizers that mark the language
        of a text (mBART, NLLB, M2M-100); the defaults come from the files of the tokenizer and the model.
      stop_strings: texts that end a sequence once it contains one.
      use_cache: accepted for calls of transformers; keys and values are always cached, which gives the same tokens.
      return_dict_in_generate: return a GenerateOutput instead of its `sequences` (or texts).
      output_logprobs, top_logprobs: also return log-probabilities of the new tokens, and of this many most likely tokens
        per step (not for beam search, contrastive search or speculative decoding).
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    do_sample: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    seed: int | Sequence[int] | None = None

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] | None = None
    sequence_bias: Mapping[tuple[int, ...], float] | Sequence[tuple[Sequence[int], float]] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: Tokens = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    renormalize_logits: bool = False

    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    force_words_ids: Sequence[Sequence[int]] | None = None
    penalty_alpha: float | None = None
    num_assistant_tokens: int = 5

    eos_token_id: Tokens = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    decoder_start_token_id: Tokens = None
    src_lang: str | None = None
    tgt_lang: str | None = None
    stop_strings: str | Sequence[str] | None = None
    use_cache: bool = True
    return_dict_in_generate: bool = False
    output_logprobs: bool = False
    top_logprobs: int = 0

    @property
    def ends(self) -> list[int]:
        """Tokens that end a text, possibly none."""
        return as_list(self.eos_token_id)

    @property
    def pad(self) -> int:
        """The padding token; an end token if the model has no padding token, as in transformers."""
        return self.pad_token_id if self.pad_token_id is not None else (self.ends or [0])[0]

    @property
    def stops(self) -> list[str]:
        """`stop_strings` as a list."""
        strings = self.stop_strings
        return [strings] if isinstance(strings, str) else list(strings or ())

    @property
    def biases(self) -> list[tuple[Sequence[int], float]]:
        """Pairs (token sequence, bias on its last token if it follows the others)."""
        pairs = self.sequence_bias or ()
        found = pairs.items() if isinstance(pairs, Mapping) else pairs
        return list({tuple(tokens): bias for tokens, bias in found}.items())  # the last bias of a sequence counts

    @property
    def strategy(self) -> str:
        """One of `tokens` (greedy or sampling), `beams` and `contrastive`."""
        if self.penalty_alpha and self.top_k > 1 and not self.do_sample and self.num_beams == 1:
            return "contrastive"
        return "beams" if self.num_beams > 1 else "tokens"


NAMES = tuple(field.name for field in dataclasses.fields(GenerationConfig))
TOKENS = tuple(
    name for name in NAMES if name.endswith(("_token_id", "_words_ids", "suppress_tokens")) or name == "sequence_bias"
)
# Further options of transformers that change the generated tokens, and the values with which they do not.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "guidance_scale": (1,),
    "watermarking_config": (),
    "token_healing": (False,),
    "max_time": (),
}
UNSUPPORTED_FILTERS: Mapping[str, tuple[Any, ...]] = {"eta_cutoff": (0,), "top_h": ()}  # of sampling
_KINDS = typing.get_type_hints(GenerationConfig)
# Expected forms, for messages about values of the wrong type.
_FORMS = {
    "eos_token_id": "a token id or a list of them",
    "decoder_start_token_id": "a token id, or a list with one for each prompt",
    "forced_eos_token_id": "a token id or a list of them",
    "seed": "an integer, or a list with one for each prompt",
    "bad_words_ids": "a list of lists of token ids, one for each word: [[5], [7, 8]]",
    "force_words_ids": "a list of lists of token ids, one for each word: [[5], [7, 8]]",
    "sequence_bias": "pairs of a list of token ids and a number, [[[500], 3.0], [[7, 8], -2.0]] (also in JSON), or in Python a "
    "dict with tuples of token ids: {(500,): 3.0}",
    "suppress_tokens": "a list of token ids: [5, 7]",
    "begin_suppress_tokens": "a list of token ids: [5, 7]",
    "exponential_decay_length_penalty": "a pair of a number of tokens and a factor: [10, 1.5]",
    "early_stopping": 'True, False or "never"',
    "stop_strings": 'a text or a list of texts: ["a", "b"]',
}
_PLAIN = {bool: "true or false", int: "an integer", float: "a number"}


def as_list(tokens: Tokens) -> list[int]:
    """Convert one token id, several or None to a list."""
    if tokens is None:
        return []
    return [int(token) for token in np.ravel(tokens)]


def load_defaults(directory: pathlib.Path) -> dict[str, Any]:
    """Read generation_config.json of a model directory; {} if there is none.

    Raises:
      PretrainedError: the file is not a JSON object, or a value has the wrong type.
    """
    path = pathlib.Path(directory) / FILE
    if paths.kind(path) == paths.NOTHING:
        return {}
    fix = "Copy it again, or remove it to do without."
    values = read_json(path, Object, error=PretrainedError, fix=fix)
    check_types({name: value for name, value in values.items() if value is not None}, f"{path}: ", PretrainedError)
    if not fits(values.get("decoder_start_token_id"), int | None):
        raise PretrainedError(
            f"{path}: decoder_start_token_id={_shown(values['decoder_start_token_id'])} has a token for each prompt of one batch, which only a "
            "call of generate can give. Set it to one token."
        )
    return values


def token_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """Select the begin, end, padding and decoder-start token ids of a config.json."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}


def save_defaults(directory: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Write generation_config.json, unless there are no values."""
    if values:
        text = json.dumps(dict(values), indent=2, sort_keys=True) + "\n"
        write_atomically(pathlib.Path(directory) / FILE, text)


def with_decoder_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the keys of an inner decoder config to a config.json that combines an encoder and a decoder; outer keys win."""
    outer = {name: value for name, value in config.items() if value is not None}
    inner = outer.get("decoder")
    return {**(inner if isinstance(inner, Mapping) else {}), **outer}


def make_options(given: Mapping[str, Any], file: Mapping[str, Any], config: Mapping[str, Any]) -> GenerationConfig:
    """Resolve the options of a call: arguments override generation_config.json, which overrides config.json.

    Args:
      given: arguments, named as fields of GenerationConfig; None means not given.
      file: generation_config.json. If it is not empty, only missing ids of `token_ids` are taken from config.json.
      config: config.json.

    Raises:
      UserError: an argument is unknown, out of range, or conflicts with another, or `file` has an option that is not supported.
    """
    for name in given:
        if name not in NAMES:
            raise UserError(f"generate has no argument {name!r}. {suggest(name, NAMES)}")
    defaults = {name: value for name, value in with_decoder_keys(config).items() if name in NAMES and value is not None}
    defaults = token_ids(defaults) if file else defaults
    defaults |= {name: value for name, value in file.items() if name in NAMES and value is not None}
    given = {name: value for name, value in given.items() if value is not None}
    check_types(given)
    check_types({name: value for name, value in defaults.items() if name not in given}, "The model's files set ")
    given = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in given.items()}
    if "max_length" in given and "max_new_tokens" not in given:
        defaults.pop("max_new_tokens", None)
    if "min_length" in given:
        defaults.pop("min_new_tokens", None)
    options = GenerationConfig(**(defaults | given))
    try:
        _check(options)
    except UserError as error:
        name = re.split(r"\W", str(error), maxsplit=1)[0]  # each message begins with the option's name
        if name in given or name not in defaults:
            raise
        origin = FILE if file.get(name) is not None else "config.json"
        raise UserError(f"The model's {origin}: {error} Fix it there, or give {name} yourself.") from error
    for name, neutral in {**UNSUPPORTED, **(UNSUPPORTED_FILTERS if options.do_sample else {})}.items():
        if file.get(name) is not None and file[name] not in neutral:
            raise UserError(
                f"The model's {FILE} sets {name}={_shown(file[name])}, which is not supported. Remove it there."
            )
    ignored = {"temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff"} & set(given)
    if ignored and not options.do_sample:
        LOG.warning("%s only affect sampling: add do_sample=True.", ", ".join(sorted(ignored)))
    return options


def check_types(given: Mapping[str, Any], where: str = "", error: type[UserError] = UserError) -> None:
    """Raise an `error`, whose message begins with `where`, if a value has the wrong type; unknown names are ignored."""
    for name, value in given.items():
        if name in _KINDS and not fits(value, _KINDS[name]):
            form = _FORMS.get(name) or next(
                _PLAIN[one] for one in (*typing.get_args(_KINDS[name]), _KINDS[name]) if one in _PLAIN
            )
            raise error(f"{where}{name}={_shown(value)}, which has the wrong type: it must be {form}.")


def _shown(value: Any) -> str:
    """Format a value for a message, truncated if it is long."""
    return short(value) if isinstance(value, dict | list | tuple | str | int | float) else repr(value)[:80]


def fits(value: Any, kind: Any) -> bool:
    """Check a Python or JSON value against a type annotation. Lists count as tuples, and 0 and 1 as booleans."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, one) for one in inside)
    if origin is typing.Literal:
        return value in inside
    if origin is Mapping:

        def good(key: Any, one: Any) -> bool:
            return fits(key, inside[0]) and fits(one, inside[1])

        return isinstance(value, Mapping) and all(good(*pair) for pair in value.items())
    if origin in (Sequence, tuple):
        if not (isinstance(value, list | tuple | range) or getattr(value, "ndim", 0) > 0):
            return False
        each = [inside[0]] * len(value) if origin is Sequence or inside[-1] is ... else inside
        return len(each) == len(value) and all(map(fits, value, each))
    if kind is int:
        return _is_number(value, np.integer)
    if kind is float:
        return (_is_number(value, np.integer) or _is_number(value, np.floating)) and value == value
    if kind is bool:
        return isinstance(value, bool | np.bool_) or (_is_number(value, np.integer) and value in (0, 1))
    return isinstance(value, kind)


def _is_number(value: Any, kind: type) -> bool:
    """Check for a scalar of Python, NumPy or JAX of one of NumPy's abstract types (np.integer or np.floating)."""
    if isinstance(value, bool | int | float):
        return isinstance(value, int if kind is np.integer else float) and not isinstance(value, bool)
    return getattr(value, "ndim", None) == 0 and np.issubdtype(np.asarray(value).dtype, kind)


def _numbers(value: Any) -> Iterator[Any]:
    """Yield the leaves of nested lists, tuples, ranges and dicts."""
    if isinstance(value, list | tuple | range | Mapping):
        for one in value.items() if isinstance(value, Mapping) else value:
            yield from _numbers(one)
    else:
        yield value


def _check(options: GenerationConfig) -> None:
    def need(condition: bool, message: str) -> None:
        if not condition:
            raise UserError(message)

    for name in NAMES:
        value = getattr(options, name)
        for one in _numbers(value) if name != "seed" else ():
            small = not _is_number(one, np.integer) or -(2**31) <= one < 2**31
            need(small, f"{name}={_shown(value)}: {_shown(one)} does not fit into 32 bits.")
            need(not isinstance(one, float) or math.isfinite(one), f"{name}={_shown(value)}: {one} is not finite.")
    for name in ("num_beams", "num_return_sequences", "num_beam_groups", "num_assistant_tokens"):
        need(getattr(options, name) >= 1, f"{name}={getattr(options, name)}: it must be at least 1.")
    for name in ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "top_logprobs"):
        need(getattr(options, name) >= 0, f"{name}={getattr(options, name)}: it must be 0 (off) or more.")
    for name in ("max_new_tokens", "max_length"):
        value = getattr(options, name)
        need(value is None or value >= 1, f"{name}={value}: it must be at least 1.")
    if options.do_sample:  # else filters are unused, and a model's files may have temperature 0 for greedy decoding
        _check_filters(options, need)
    for name in ("repetition_penalty", "encoder_repetition_penalty"):
        need(getattr(options, name) > 0, f"{name}={getattr(options, name)}: it must be above 0 (1 is off).")
    need(options.early_stopping in (True, False, "never"), 'early_stopping must be True, False or "never".')
    for name in ("bad_words_ids", "force_words_ids"):
        lists = getattr(options, name)
        good = lists is None or (len(lists) > 0 and all(map(len, lists)))
        need(good, f"{name} is a list of lists of token ids, one for each word; got {lists!r}.")
    need(all(len(tokens) for tokens, _ in options.biases), "sequence_bias has a sequence without tokens. Take it out.")
    need(all(options.stops), "stop_strings holds an empty text, which is everywhere. Take it out.")
    need(
        all(map(is_text, options.stops)),
        "stop_strings holds half a character (a lone surrogate), which no text has. Take it out.",
    )
    _check_together(options, need)


def _check_filters(options: GenerationConfig, need: Any) -> None:
    need(options.top_k >= 0, f"top_k={options.top_k}: it must be 0 (off) or more.")
    need(
        options.temperature > 0,
        f"temperature={options.temperature}: it must be above 0. For greedy decoding leave out do_sample.",
    )
    for name in ("top_p", "typical_p", "min_p", "epsilon_cutoff"):
        value = getattr(options, name)
        need(value is None or 0 <= value <= 1, f"{name}={value}: it must be from 0 to 1.")
    need(options.top_p > 0 and options.typical_p > 0, "top_p and typical_p must be above 0; 1 keeps all tokens.")


def _check_together(options: GenerationConfig, need: Any) -> None:
    beams, copies = options.num_beams, options.num_return_sequences
    if options.strategy == "beams":
        need(
            copies <= beams,
            f"num_return_sequences={copies} is more than num_beams={beams}: raise num_beams to {copies}.",
        )
        need(not options.stops, "stop_strings cannot be combined with beams: use eos_token_id=[...], or num_beams=1.")
    else:
        need(
            copies == 1 or options.do_sample,
            f"num_return_sequences={copies}, but greedy decoding gives one text. Add do_sample=True, or "
            f"num_beams={copies}.",
        )
        need(options.force_words_ids is None, "force_words_ids needs beams: add num_beams=4 or more.")
    need(
        options.strategy == "tokens" or not options.top_logprobs,
        "top_logprobs cannot be combined with beams or penalty_alpha: output_logprobs=True gives those of the chosen tokens.",
    )
    groups = options.num_beam_groups
    need(beams % groups == 0, f"num_beams={beams} is not a multiple of num_beam_groups={groups}: choose one that is.")
    need(
        groups == 1 or not options.do_sample,
        "num_beam_groups cannot be combined with do_sample=True: groups are for beam search without sampling. Drop one.",
    )
    need(
        groups > 1 or not options.diversity_penalty,
        "diversity_penalty applies between groups of beams: add num_beam_groups.",
    )
    need(
        options.force_words_ids is None or (groups == 1 and not options.do_sample),
        "force_words_ids requires plain beam search: leave out do_sample and num_beam_groups.",
    )
    need(
        not (options.penalty_alpha and (options.do_sample or beams > 1)),
        "penalty_alpha selects contrastive search, which neither samples nor has beams: leave out do_sample and num_beams.",
    )
    need(not options.penalty_alpha or options.top_k > 1, "penalty_alpha needs top_k above 1, such as 4.")
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = set(as_list(getattr(options, name)))
        need(
            not forced or not forced <= set(options.suppress_tokens or ()),
            f"{name}={sorted(forced)} is also in suppress_tokens, which leaves no token there. Take it out of one of them.",
        )

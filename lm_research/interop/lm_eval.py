"""Model for lm-evaluation-harness (`pip install -e '.[lm_eval]'`), whose tasks and command line then run on our directories.

    python -m lm_research.interop.lm_eval --model lm_research --model_args path=DIR --tasks lambada_openai,blimp --batch_size 8

is `lm_eval` with this model registered, and accepts all of its flags; in Python, `import lm_research.interop.lm_eval` registers it.
Causal models and encoder-decoders support all kinds of requests. For masked language models, likelihoods are
pseudo-log-likelihoods (Salazar et al. 2020), and generation is not supported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from lm_research.config import resolve
from lm_research.decoding.generation_request import Request, engine_of
from lm_research.decoding.prompts import text_start, uses_document_separator
from lm_research.decoding.pseudo_likelihood import HEADS, PseudoLikelihood
from lm_research.decoding.scoring import token_logprobs_of_rows, windows
from lm_research.errors import ConfigError, UserError
from lm_research.parallel.mesh import make_mesh
from lm_research.pretrained import from_pretrained

_LONGEST = 2048  # default context length, as in the harness
_ROWS = 8

Scored = tuple[float, bool]


@register_model("lm_research")
class ResearchLM(TemplateLM):
    """A model directory for the harness; the arguments are its --model_args.

    Args:
      path: a directory that `from_pretrained` loads.
      dtype: float32, bfloat16 or float16; None uses that of the files.
      mesh: a value of config.mesh.preset (dp, fsdp, fsdp+tensor) to use all devices; None uses one device.
      max_length: context length in tokens, at most the size of the position table; None uses that of config.json or the
        tokenizer, or 2048.
      max_gen_toks: number of new tokens if a task does not set it.
      batch_size: rows per forward pass.

    Raises:
      UserError: the directory cannot be loaded, has no tokenizer, or its model does not predict tokens.
    """

    def __init__(
        self,
        path: str,
        dtype: str | None = None,
        mesh: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        devices = make_mesh(resolve({"mesh": {"preset": mesh}}).mesh) if mesh else None
        self.lm = from_pretrained(str(path), dtype=dtype, mesh=devices)
        if self.lm.head not in (*HEADS, "causal_lm", "seq2seq_lm"):
            raise ConfigError(
                f"{path} has head {self.lm.head!r}, which does not define a likelihood of texts. Use a language model."
            )
        if self.lm.tokenizer is None:
            raise ConfigError(f"{path} has no tokenizer, so it cannot read texts. Put its files there.")
        self.path, self.tokenizer = str(path), self.lm.tokenizer
        self.backend = "seq2seq" if self.lm.head == "seq2seq_lm" else "causal"
        self._separated = self.backend == "causal" and uses_document_separator(self.tokenizer)
        self._prefix = self.tokenizer.pieces([self.prefix_token_id])[0]
        arch = self.lm.definition.arch
        self.max_length = int(max_length or self.lm.context_length or _LONGEST)
        if (arch.encoder or arch).positions == "learned":
            self.max_length = min(self.max_length, self.lm.context_length or self.max_length)
        self.max_gen_toks = int(max_gen_toks)
        self.batch_size = int(rows) if (rows := str(batch_size or "")).isdigit() else _ROWS
        self.pseudo = PseudoLikelihood(self.lm, max(self.batch_size, 32)) if self.lm.head in HEADS else None

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.roles.get("eos", self.tokenizer.roles.get("sep", 0))

    @property
    def prefix_token_id(self) -> int:
        """The token that precedes the first token of a text."""
        start = text_start(self.tokenizer)
        return self.eot_token_id if start is None else start

    @property
    def tokenizer_name(self) -> str:
        """The path, which identifies the tokenizer in the harness's cache of requests."""
        return self.path

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **ignored: Any) -> list[int]:
        """Encode a text with the special tokens that the model was trained with.

        They are omitted if `add_special_tokens` is False, or if the text already begins with the first of them. Special tokens
        written in the text are encoded as such.
        """
        if self._separated:
            plain = self.tokenizer.encode_batch([string])[0]
            return plain if add_special_tokens is False else [self.prefix_token_id, *plain]
        if not string:
            return []
        framed = add_special_tokens is not False and not (self._prefix and string.startswith(self._prefix))
        return np.asarray(self.tokenizer(string, add_special_tokens=framed)["input_ids"])[0].tolist()

    # ------------------------------------------------------------------------------------------ likelihoods

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Scored]:
        """Log-probability [nats] of each request's continuation, and whether greedy decoding generates it."""
        if self.pseudo is None:
            return super().loglikelihood(requests, disable_tqdm)
        pairs = [request.args for request in requests]
        return self._kept(requests, "loglikelihood", self._pseudo(self.pseudo, [(a + b, len(a)) for a, b in pairs]))

    def _pseudo(self, pseudo: PseudoLikelihood, texts: Sequence[tuple[str, int]]) -> list[Scored]:
        """Pseudo-log-likelihood of the part of each text from a character on."""

        def some(batch: list[tuple[str, int]]) -> list[Scored]:
            sentences = pseudo.encode([text for text, _ in batch], [start for _, start in batch])
            return [total_loglikelihood(one) for one in pseudo.evaluate(sentences)]

        return in_batches(texts, lambda text: len(text[0]), self.batch_size, some)

    def _loglikelihood_tokens(self, requests: list[Any], **ignored: Any) -> list[Scored]:
        """As `loglikelihood`, for ((context, continuation), their ids); contexts are truncated on the left."""
        pairs = [(list(context), list(more)) for _, context, more in requests]
        found = in_batches(pairs, lambda pair: len(pair[0]) + len(pair[1]), self.batch_size, self._score)
        for (texts, _, _), answer in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Scored]:
        found: list[Scored] = [(0.0, True)] * len(pairs)  # for empty continuations
        nonempty = [number for number, (_, more) in enumerate(pairs) if more]
        if not nonempty:
            return found
        contexts, continuations = [pairs[i][0] for i in nonempty], [pairs[i][1] for i in nonempty]
        if self.backend == "seq2seq":
            contexts = [context[-self.max_length :] or [self.prefix_token_id] for context in contexts]
            request = Request(self.lm, {"max_new_tokens": 1}, {"input_ids": contexts}, None)
            scored = token_logprobs_of_rows(request.engine, request.rows, continuations, request.sources)
        else:
            for context, more in zip(contexts, continuations, strict=True):
                if len(more) > self.max_length:
                    raise UserError(
                        f"A continuation has {len(more)} tokens, but the model reads {self.max_length} at a time. Leave the task out."
                    )
                del context[: max(0, len(context) + len(more) - self.max_length - 1)]
            scored = token_logprobs_of_rows(engine_of(self.lm), contexts, continuations)
        for number, one in zip(nonempty, scored, strict=True):
            found[number] = total_loglikelihood(one)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability [nats] of whole texts; each token is predicted once, in windows of the model's length."""
        texts = [request.args[0] for request in requests]
        if self.pseudo is not None:
            totals = [value for value, _ in self._pseudo(self.pseudo, [(text, 0) for text in texts])]
        else:
            # As in the harness, the token that a tokenizer puts before a text is predicted like the others.
            rows = [self.tok_encode(text, add_special_tokens=False if self._separated else None) for text in texts]
            parts = [
                (i, pair) for i, row in enumerate(rows) for pair in windows(row, self.prefix_token_id, self.max_length)
            ]
            found = self._loglikelihood_tokens([(None, *pair) for _, pair in parts])
            totals = [0.0] * len(texts)
            for (i, _), (value, _) in zip(parts, found, strict=True):
                totals[i] += value
        return self._kept(requests, "loglikelihood_rolling", totals)

    # ------------------------------------------------------------------------------------------ generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate continuations, truncated before the first stop string of each request."""
        if self.pseudo is not None:
            raise UserError("A masked language model cannot generate text. Leave out tasks that generate.")
        found: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in groups.values():
            kwargs = requests[numbers[0]].args[1]
            contexts = [requests[number].args[0] for number in numbers]
            texts = in_batches(contexts, len, self.batch_size, functools.partial(self._write, kwargs=kwargs))
            found |= dict(zip(numbers, texts, strict=True))
        return self._kept(requests, "generate_until", [found[number] for number in range(len(requests))])

    def _write(self, contexts: list[str], kwargs: Mapping[str, Any]) -> list[str]:
        options, until, max_new_tokens = parse_generation_kwargs(kwargs, self.max_gen_toks)
        max_context = self.max_length if self.backend == "seq2seq" else self.max_length - max_new_tokens
        if max_context < 1:
            raise UserError(
                f"max_gen_toks is {max_new_tokens}, but the model's context has {self.max_length} tokens. Lower max_gen_toks."
            )
        rows = [self.tok_encode(context)[-max_context:] or [self.prefix_token_id] for context in contexts]
        mask = [[1] * len(row) for row in rows]  # padding tokens that a text contains are real
        output = self.lm.generate(
            input_ids=rows,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            stop_strings=until or None,
            return_dict_in_generate=True,
            **options,
        )
        return [truncate_at_stop(text, until) for text in output.texts]

    def _kept(self, requests: list[Any], kind: str, answers: list[Any]) -> list[Any]:
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers


def total_loglikelihood(scored: tuple[np.ndarray, np.ndarray]) -> Scored:
    """Combine the scores of a continuation's tokens."""
    return float(scored[0].astype(np.float64).sum()), bool(scored[1].all())


def in_batches(
    items: Sequence[Any], size: Callable[[Any], int], rows: int, run: Callable[[list[Any]], list[Any]]
) -> list[Any]:
    """Call `run` on batches of `rows` items, longest first to reduce padding; returns the results in the order of the items."""
    order = sorted(range(len(items)), key=lambda i: -size(items[i]))
    found: dict[int, Any] = {}
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        found |= dict(zip(chosen, run([items[i] for i in chosen]), strict=True))
    return [found[i] for i in range(len(items))]


def parse_generation_kwargs(kwargs: Mapping[str, Any], default: int) -> tuple[dict[str, Any], list[str], int]:
    """Convert the harness's arguments to options of `generate`, stop strings, and the number of new tokens."""
    options = dict(kwargs)
    until = options.pop("until", None) or []
    until = [until] if isinstance(until, str) else list(until)
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    lengths = [options.pop(name) for name in names if name in options]
    sample = bool(options.get("do_sample", options.get("temperature", 0.0) > 0.0))
    if not sample:  # filters have no effect on greedy decoding
        options = {name: x for name, x in options.items() if name not in ("temperature", "top_p", "top_k", "min_p")}
    return options | {"do_sample": sample}, [stop for stop in until if stop], int(lengths[0] if lengths else default)


def truncate_at_stop(text: str, until: Sequence[str]) -> str:
    """Truncate a text before its first stop string."""
    places = [place for stop in until if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()

"""What all pipelines share: inputs of any number, run a batch at a time through few compiled shapes.

Legend: B rows, L length.
"""

from __future__ import annotations

import abc
import functools
import inspect
import itertools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lm_research.common.texts import replace_surrogates
from lm_research.decoding.generation_config import fits
from lm_research.errors import UserError, suggest
from lm_research.pretrained import LanguageModel
from lm_research.tokenizers.run_tokenizer import with_special_tokens

_NARROWEST = 32  # tokens; rows are padded to this, or twice, four times ... as many
_CUT = "Texts are cut at the model's length and padded as a batch needs it: leave it out."
_READING = "It belongs to pipeline(task, model, ...), which reads the model."
_DEVICE = "JAX takes the accelerator that is there: leave it out (JAX_PLATFORMS=cpu keeps to the CPU, mesh=... divides a model)."
_ELSEWHERE = {  # what Hugging Face's pipelines take, or `pipeline` alone, and what to do here
    "device": _DEVICE,
    "device_map": _DEVICE,
    "framework": "There is only JAX: leave it out.",
    "torch_dtype": 'Write dtype="bfloat16" in pipeline(task, model, ...).',
    "dtype": _READING,
    "mesh": _READING,
    "tokenizer": "It is read from the model's directory: leave it out.",
    "truncation": _CUT,
    "padding": _CUT,
}


class Pipeline(abc.ABC):
    """A task done by a model: called with one input it gives one answer, with a list a list, with a generator a generator.

    Attributes:
      task: its name.
      lm: the model.
      batch_size: inputs run together.
      own: the model's tokenizer; tokenizer: one like it that always puts special tokens around texts.
      options: defaults of a call's keyword arguments.
      parts: (rows, length) of a batch -> the rows that the model runs at a time; by default all.
    """

    heads: ClassVar[tuple[str, ...]]
    passed_on: ClassVar[tuple[str, ...]] = ()  # options that `run` only hands on

    def __init__(self, task: str, lm: LanguageModel, batch_size: int = 8, **options: Any) -> None:
        self.check(task, {"batch_size": batch_size, **options})
        self.task, self.lm, self.batch_size, self.options = task, lm, batch_size, options
        self.parts: Callable[[int, int], Iterable[slice]] = lambda rows, length: [slice(rows)]
        if lm.head not in self.heads:
            raise UserError(
                f"The task {task} needs a model with head {' or '.join(self.heads)}, but this one has head {lm.head!r}. Use "
                "another model, or read it with lm_research.from_pretrained(path, head=...) and train it first."
            )
        if lm.tokenizer is None:
            raise UserError(
                f"The task {task} reads texts, but the model's directory has no tokenizer. Put its files there."
            )
        self.own = lm.tokenizer
        self.tokenizer = with_special_tokens(self.own)
        arch = lm.definition.arch
        self.longest = (arch.encoder or arch).max_length or self.tokenizer.max_length or 0

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The answer to an input, or those to several.

        Args:
          inputs: one, a list of them, or any other iterable, which is read as answers are asked for.
          options: of the task; see its class.

        Raises:
          UserError: an input or option that the task does not take; inputs are counted from 0.
        """
        self.check(self.task, options)
        options = self.options | options
        if self.is_one(inputs) or not isinstance(inputs, Iterable):
            return next(self._answers(iter([inputs]), options))
        if isinstance(inputs, Sequence):
            return list(self._answers(iter(inputs), options))
        return self._answers(iter(inputs), options)

    def is_one(self, inputs: Any) -> bool:
        """Whether this is one input, not several."""
        return isinstance(inputs, str | Mapping)

    @classmethod
    def check(cls, task: str, options: Mapping[str, Any]) -> None:
        """Raises a UserError if there is no such option of the task, or it takes no such value."""
        kinds = _kinds(cls)
        for name, value in options.items():
            if name in kinds and not fits(value, kinds[name]):
                raise UserError(f"{task}: {name}={value!r:.80} must be {_described(kinds[name])}.")
            if name not in kinds and name not in cls.passed_on:
                advice = _ELSEWHERE.get(name) or suggest(name, [*kinds, *cls.passed_on])
                raise UserError(f"{task} has no option {name!r}. {advice}")
        if options.get("batch_size", 1) < 1:
            raise UserError(f"{task}: batch_size={options['batch_size']}: it is at least 1.")

    @classmethod
    def wrong(cls, one: Any) -> str | None:
        """What is wrong with an input, to be said after its name; None if nothing is."""
        return None if isinstance(one, str) else f"is {one!r:.80}, not a text."

    def _answers(self, inputs: Iterator[Any], options: dict[str, Any]) -> Iterator[Any]:
        size, first = options.pop("batch_size", self.batch_size), 0
        while batch := list(itertools.islice(inputs, size)):
            for number, one in enumerate(batch, first):
                if wrong := self.wrong(one):
                    raise UserError(f"Input {number} of {self.task} {wrong}")
            first += len(batch)
            yield from self.run(replace_surrogates(batch), **options)

    @abc.abstractmethod
    def run(self, *batch: Any, **options: Any) -> Iterable[Any]:
        """The answers to a batch, `run(batch, option=...)`: each class declares the options of its task."""

    # ------------------------------------------------------------------------------------------ tools of tasks

    def encode(
        self, texts: Sequence[str], seconds: Sequence[str] | None = None, **options: Any
    ) -> dict[str, np.ndarray]:
        """Rows of ids, cut to the model's length."""
        second = None if seconds is None else list(seconds)
        cut, length = self.longest > 0, self.longest or None
        return self.tokenizer(list(texts), second, padding=True, truncation=cut, max_length=length, **options)

    def forward(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs for rows."""
        parts = self.parts(*batch["input_ids"].shape)
        found = [self._forward({name: x[part] for name, x in batch.items()}) for part in parts]
        return found[0] if len(found) == 1 else {name: np.concatenate([x[name] for x in found]) for name in found[0]}

    def _forward(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`forward`, without what is added here to make shapes that are compiled already."""
        arrays = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        rows, length = arrays["input_ids"].shape
        width = _NARROWEST
        while width < length:
            width *= 2
        width = max(length, min(width, self.longest or width))
        height = 1
        while height < rows:
            height *= 2
        left = self.tokenizer.padding_side == "left"
        sides = (width - length, 0) if left else (0, width - length)
        padded: dict[str, Any] = {name: np.pad(x, ((0, height - rows), sides)) for name, x in arrays.items()}
        padded["attention_mask"][rows:, 0] = 1  # a row that sees nothing would divide by zero
        arch = self.lm.definition.arch
        if not (arch.num_types or arch.token_types):
            padded.pop("token_type_ids", None)
        outputs = self.lm(**padded)
        start = width - length if left else 0
        by_token = {"start_logits", "end_logits", "last_hidden_state"} | (
            {"logits"} if self.lm.head in BY_TOKEN else set()
        )
        found = {}
        for name, x in outputs.items():
            x = np.asarray(x)[:rows]
            found[name] = x[:, start : start + length] if name in by_token else x
        return found


BY_TOKEN = ("masked_lm", "pretraining", "token_classification", "causal_lm", "replaced_token")


def label_names(lm: LanguageModel) -> list[str]:
    """Names of the model's classes, in order."""
    named = lm.config.to_dict().get("id2label") or {}
    return [named.get(str(i), named.get(i, f"LABEL_{i}")) for i in range(lm.definition.head.num_labels)]


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def flaw(one: Any, texts: Sequence[str], form: str) -> str | None:
    """What is wrong with an input that should be a dict with some texts, of the form `form`; None if nothing is."""
    if not isinstance(one, Mapping):
        return f"is {one!r:.80}, not {form}."
    for name in texts:
        if name not in one:
            return f"has no {name!r}, but {', '.join(map(repr, one)) or 'nothing'}. It must be {form}."
        if not isinstance(one[name], str):
            return f"has {one[name]!r:.80} as {name!r}, not a text. It must be {form}."
    return None


@functools.cache
def _kinds(kind: type[Pipeline]) -> dict[str, Any]:
    """Options of a task and their types, as `run` of its class and those above it say."""
    found: dict[str, Any] = {"batch_size": int}
    for owner in reversed(kind.__mro__):
        if run := vars(owner).get("run"):
            hints, parameters = typing.get_type_hints(run), inspect.signature(run).parameters.values()
            named = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
            found |= {name: hints[name] for name in named if name not in ("self", "batch")}
    return found


def _described(kind: Any) -> str:
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is Sequence:
        return f"a list of {_described(inner[0]).removeprefix('a ')}s"
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, inner))
    known = {int: "a whole number", str: "a text", bool: "true or false", type(None): "None"}
    return " or ".join(map(_described, inner)) if inner else known[kind]

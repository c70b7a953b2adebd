"""Base class of all pipelines: checks inputs and options, and runs inputs in batches of few compiled shapes."""

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

_MIN_WIDTH = 32  # tokens; batches are padded to this times a power of two
_TRUNCATED = "Texts are truncated to the model's maximum length and padded to the batch automatically: leave it out."
_LOADING = "It is an option of pipeline(task, model, ...), which loads the model."
_DEVICE = (
    "JAX uses the available accelerator: leave it out (JAX_PLATFORMS=cpu selects the CPU, mesh=... partitions a model)."
)
_ELSEWHERE = {  # options of Hugging Face's pipelines, or of `pipeline` only, and what to do instead
    "device": _DEVICE,
    "device_map": _DEVICE,
    "framework": "JAX is the only framework: leave it out.",
    "torch_dtype": 'Write dtype="bfloat16" in pipeline(task, model, ...).',
    "dtype": _LOADING,
    "mesh": _LOADING,
    "tokenizer": "It is read from the model's directory: leave it out.",
    "truncation": _TRUNCATED,
    "padding": _TRUNCATED,
}


class Pipeline(abc.ABC):
    """A model and a task: a callable that maps one input to one output, a list to a list and a generator to a generator.

    Build one with `lm_research.pipeline(task, model)`:

        answer = lm_research.pipeline("question-answering", "runs/squad")
        answer({"question": "Who wrote Emma?", "context": "Jane Austen wrote Emma."})  # {"answer": "Jane Austen", ...}

    A subclass defines `heads`, the model heads that fit its task, and `run`.

    Attributes:
      task: name of the task.
      lm: the model.
      batch_size: number of inputs that run together.
      base_tokenizer: the model's tokenizer.
      tokenizer: the same tokenizer, except that it always adds special tokens to texts.
      max_length: number of tokens that the model can read; 0 if unlimited.
      options: default keyword arguments of calls.
      split_batch: maps (batch size, length) to the slices of a batch that the model runs one after the other; by default
        one slice.
    """

    heads: ClassVar[tuple[str, ...]]
    forwarded_options: ClassVar[tuple[str, ...]] = ()  # options that `run` passes to `lm.generate` unchecked

    def __init__(self, task: str, lm: LanguageModel, batch_size: int = 8, **options: Any) -> None:
        self.check_options(task, {"batch_size": batch_size, **options})
        self.task, self.lm, self.batch_size, self.options = task, lm, batch_size, options
        self.split_batch: Callable[[int, int], Iterable[slice]] = lambda rows, length: [slice(rows)]
        if lm.head not in self.heads:
            raise UserError(
                f"The task {task} needs a model with head {' or '.join(self.heads)}, but this model has head {lm.head!r}. Use "
                "another model, or load this one with lm_research.from_pretrained(path, head=...) and train it first."
            )
        if lm.tokenizer is None:
            raise UserError(
                f"The task {task} reads texts, but the model's directory has no tokenizer. Put the tokenizer's files there."
            )
        self.base_tokenizer = lm.tokenizer
        self.tokenizer = with_special_tokens(lm.tokenizer)
        arch = lm.definition.arch
        self.max_length = (arch.encoder or arch).max_length or self.tokenizer.max_length or 0

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Run the task on one input or several.

        Args:
          inputs: one input, a list of inputs, or any other iterable of inputs, which is consumed lazily.
          **options: options of the task (see the class), which override those given to `pipeline`, and `batch_size`.

        Returns:
          The output for one input; a list of outputs for a list; otherwise an iterator over outputs.

        Raises:
          UserError: an input or option is not valid for the task. Messages count inputs from 0.
        """
        self.check_options(self.task, options)
        options = self.options | options
        if self.is_single(inputs) or not isinstance(inputs, Iterable):
            return next(self._run_batches(iter([inputs]), options))
        if isinstance(inputs, Sequence):
            return list(self._run_batches(iter(inputs), options))
        return self._run_batches(iter(inputs), options)

    def is_single(self, inputs: Any) -> bool:
        """Return whether `inputs` is one input and not a collection of inputs."""
        return isinstance(inputs, str | Mapping)

    @classmethod
    def check_options(cls, task: str, options: Mapping[str, Any]) -> None:
        """Raise a UserError if an option does not exist or its value has the wrong type."""
        types = _option_types(cls)
        for name, value in options.items():
            if name in types and not fits(value, types[name]):
                raise UserError(f"{task}: {name}={value!r:.80} must be {_describe_type(types[name])}.")
            if name not in types and name not in cls.forwarded_options:
                advice = _ELSEWHERE.get(name) or suggest(name, [*types, *cls.forwarded_options])
                raise UserError(f"{task} has no option {name!r}. {advice}")
        if options.get("batch_size", 1) < 1:
            raise UserError(f"{task}: batch_size={options['batch_size']} must be at least 1.")

    @classmethod
    def input_error(cls, item: Any) -> str | None:
        """Return what is wrong with an input, as the predicate of a sentence ("is 5, not a text."), or None."""
        return None if isinstance(item, str) else f"is {item!r:.80}, not a text."

    def _run_batches(self, inputs: Iterator[Any], options: dict[str, Any]) -> Iterator[Any]:
        size, first = options.pop("batch_size", self.batch_size), 0
        while batch := list(itertools.islice(inputs, size)):
            for number, item in enumerate(batch, first):
                if error := self.input_error(item):
                    raise UserError(f"Input {number} of {self.task} {error}")
            first += len(batch)
            yield from self.run(replace_surrogates(batch), **options)

    @abc.abstractmethod
    def run(self, *batch: Any, **options: Any) -> Iterable[Any]:
        """Yield the output for each input of a batch.

        A subclass declares it as `run(self, batch, option=default, ...)`; the annotations of its options are checked.
        """

    def encode(
        self, texts: Sequence[str], text_pairs: Sequence[str] | None = None, **options: Any
    ) -> dict[str, np.ndarray]:
        """Tokenize texts or pairs into padded arrays [B, L], truncated to the model's maximum length."""
        second = None if text_pairs is None else list(text_pairs)
        truncation, length = self.max_length > 0, self.max_length or None
        return self.tokenizer(list(texts), second, padding=True, truncation=truncation, max_length=length, **options)

    def forward(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model on arrays [B, L] and return its outputs."""
        parts = self.split_batch(*batch["input_ids"].shape)
        outputs = [self._forward({name: x[part] for name, x in batch.items()}) for part in parts]
        if len(outputs) == 1:
            return outputs[0]
        return {name: np.concatenate([x[name] for x in outputs]) for name in outputs[0]}

    def _forward(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model on a batch padded to powers of two, so that few shapes are compiled, and remove the padding."""
        arrays = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        rows, length = arrays["input_ids"].shape
        width = _MIN_WIDTH
        while width < length:
            width *= 2
        width = max(length, min(width, self.max_length or width))
        height = 1
        while height < rows:
            height *= 2
        left = self.tokenizer.padding_side == "left"
        sides = (width - length, 0) if left else (0, width - length)
        padded: dict[str, Any] = {name: np.pad(x, ((0, height - rows), sides)) for name, x in arrays.items()}
        padded["attention_mask"][rows:, 0] = 1  # a row that attends to nothing would divide by zero
        arch = self.lm.definition.arch
        if not (arch.num_types or arch.token_types):
            padded.pop("token_type_ids", None)
        outputs = self.lm(**padded)
        start = width - length if left else 0
        per_token = {"start_logits", "end_logits", "last_hidden_state"}
        if self.lm.head in PER_TOKEN_HEADS:
            per_token.add("logits")
        unpadded = {}
        for name, x in outputs.items():
            x = np.asarray(x)[:rows]
            unpadded[name] = x[:, start : start + length] if name in per_token else x
        return unpadded


PER_TOKEN_HEADS = ("masked_lm", "pretraining", "token_classification", "causal_lm", "replaced_token")


def label_names(lm: LanguageModel) -> list[str]:
    """Return the names of the model's classes, in the order of its logits."""
    names = lm.config.to_dict().get("id2label") or {}
    return [names.get(str(i), names.get(i, f"LABEL_{i}")) for i in range(lm.definition.head.num_labels)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities over the last axis."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the probability of each logit by itself."""
    return 1.0 / (1.0 + np.exp(-logits))


def dict_error(item: Any, text_keys: Sequence[str], form: str) -> str | None:
    """Return what is wrong with an input that must be a dict with texts under some keys, or None.

    Args:
      item: the input.
      text_keys: keys that must hold texts.
      form: description of a valid input, for the message.
    """
    if not isinstance(item, Mapping):
        return f"is {item!r:.80}, not {form}."
    for name in text_keys:
        if name not in item:
            return f"has no {name!r}, but {', '.join(map(repr, item)) or 'nothing'}. It must be {form}."
        if not isinstance(item[name], str):
            return f"has {item[name]!r:.80} as {name!r}, not a text. It must be {form}."
    return None


@functools.cache
def _option_types(pipeline_class: type[Pipeline]) -> dict[str, Any]:
    """Map the options of a task to their types, from the annotations of `run` in its class and its base classes."""
    found: dict[str, Any] = {"batch_size": int}
    for owner in reversed(pipeline_class.__mro__):
        if run := vars(owner).get("run"):
            hints, parameters = typing.get_type_hints(run), inspect.signature(run).parameters.values()
            names = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
            found |= {name: hints[name] for name in names if name not in ("self", "batch")}
    return found


def _describe_type(annotation: Any) -> str:
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is Sequence:
        return f"a list of {_describe_type(inner[0]).removeprefix('a ')}s"
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(map(repr, inner))
    names = {int: "a whole number", str: "a text", bool: "true or false", type(None): "None"}
    return " or ".join(map(_describe_type, inner)) if inner else names[annotation]

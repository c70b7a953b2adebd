"""The Python face: `from_pretrained` reads a model directory, a `LanguageModel` runs it and writes it back.

    lm = lm_research.from_pretrained("bert-base-uncased")
    lm(**lm.tokenizer("Paris is the [MASK] of France."))["logits"]

A directory is one of Hugging Face's format (interop/huggingface.py), a native one (interop/native_checkpoint.py), or the
directory of a training run.
"""

from __future__ import annotations

import functools
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from lm_research.common.disk import reporting_disk_errors
from lm_research.common.paths import path_of
from lm_research.decoding import embed as embed_lib
from lm_research.decoding import generate as generate_lib
from lm_research.decoding import generation_config as decoding_options
from lm_research.decoding.engine import Engine
from lm_research.decoding.generation_request import read_texts
from lm_research.errors import PretrainedError, TokenizerError, UserError
from lm_research.interop import huggingface, native_checkpoint, sentence_transformers
from lm_research.interop.weight_reader import Report
from lm_research.models import forward as forward_lib
from lm_research.models import label_losses
from lm_research.models.definition import ModelDefinition, Params, define
from lm_research.models.families import family_of
from lm_research.models.forward import INPUTS, shift_around, shift_right
from lm_research.models.text_embedding import Embedding
from lm_research.parallel.mesh import named_mesh
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.loading import STARTS, load_tokenizer

LOG = logging.getLogger("lm_research")
PathLike = str | os.PathLike[str]


class LanguageModel:
    """A model, its parameters and its tokenizer.

    Attributes:
      config: config.json in the Hugging Face format, with attribute access (`lm.config.hidden_size`).
      definition: architecture and head.
      params: nested dict of arrays; stacked layers have a leading axis.
      tokenizer: see tokenizers/base.py, or None where the directory holds none.
      family: its family's name.
      report: what was initialized or left unused when it was read.
      generation_config: defaults of `generate`, from generation_config.json; {} where there is none.
      engine: the programs that write with these parameters, once there are any.
      plugins: modules that may have its family, as the config key `plugins` names them.
      embedding: defaults of `embed`, as sentence-transformers or a run of the task embedding wrote them; None where nothing did.
    """

    def __init__(
        self,
        definition: ModelDefinition,
        params: Params,
        family: str,
        config: Mapping[str, Any],
        tokenizer: Tokenizer | None = None,
        report: Report | None = None,
    ) -> None:
        self.definition, self.params, self.family, self.tokenizer = definition, params, family, tokenizer
        self._config = dict(config)
        self.report = report or Report()
        self.generation_config: dict[str, Any] = {}
        self.embedding: Embedding | None = None
        self.plugins: tuple[str, ...] = ()
        self.engine: Engine | None = None

    @property
    def config(self) -> FrozenConfigDict | ConfigDict:
        given = _attributes(self._config)
        try:
            return FrozenConfigDict(given)
        except ValueError:  # labels with a dot in them, which only the other kind takes
            return ConfigDict(given, allow_dotted_keys=True).lock()

    @property
    def head(self) -> str:
        """What it predicts, a key of models.head_kinds.HEADS."""
        return self.definition.head.name

    @property
    def context_length(self) -> int | None:
        """Tokens that it is made to read at once: what a table of positions holds, or what config.json or the tokenizer says; else None."""
        stack, config = self.definition.arch.encoder or self.definition.arch, self._config
        if stack.positions == "learned":
            return stack.max_length
        said = (config.get(name) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
        return next(filter(None, said), stack.max_length) or (self.tokenizer.max_length if self.tokenizer else None)

    @property
    def forward_head(self) -> str:
        """What models.forward.forward takes for it: some families' labels stand where they are predicted, not one to the right."""
        return family_of(self.family).loss_heads.get(self.head, self.head)

    @property
    def num_params(self) -> int:
        return self.definition.num_params

    def __call__(
        self, *, output_hidden_states: bool = False, output_attentions: bool = False, **inputs: Any
    ) -> dict[str, Any]:
        """Runs the model on a batch, compiled once for each shape.

        Args:
          input_ids: [B, L] token ids, NumPy or JAX; multiple choice [B, choices, L].
          attention_mask: [B, L], 1 for real tokens; missing is all 1. Rows may be padded on either side.
          token_type_ids, position_ids: [B, L].
          decoder_input_ids, decoder_attention_mask: [B, T] of encoder-decoders. Missing, they are made from `labels`, or
            from `input_ids` for classification and spans, moved one to the right.
          labels (next_sentence_label, sentence_order_label, start_positions, end_positions): add `loss`, as
            transformers defines it for this head; -100 is no label.
          output_hidden_states, output_attentions: also return these, a tuple with an array for each layer.

        Returns:
          A dict of arrays: `logits`, or `last_hidden_state` and `pooler_output` without a head, `prediction_logits` and
          `seq_relationship_logits` of the pre-training pair, `start_logits` and `end_logits` of spans; `loss`;
          `encoder_last_hidden_state` of encoder-decoders.

        Raises:
          UserError: an input that is unknown, missing, of another shape, longer than the model's positions, or with
            ids outside of its vocabulary.
        """
        arrays = self._checked(inputs)
        capture = output_hidden_states or output_attentions
        outputs = self._forward(self.params, arrays, capture)
        hidden = ("" if output_hidden_states else "hidden_states", "" if output_attentions else "attentions")
        names = family_of(self.family).output_names
        kept = {name: x for name, x in outputs.items() if not name.endswith(tuple(filter(None, hidden)))}
        return {names.get(name, name): x for name, x in kept.items()}

    @functools.cached_property
    def _forward(self) -> Any:
        definition, problem_type = self.definition, self._config.get("problem_type")
        head = self.forward_head

        def run(params: Params, inputs: Mapping[str, jax.Array], capture: bool) -> dict[str, Any]:
            return forward_lib.forward(definition.bind(params), head, inputs, capture, problem_type=problem_type)

        return jax.jit(run, static_argnums=2)

    def _checked(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in inputs.items() if value is not None}
        unknown = sorted(set(given) - set(INPUTS))
        if unknown:
            raise UserError(f"The model has no input {', '.join(unknown)}. Its inputs are {', '.join(INPUTS)}.")
        if "input_ids" not in given:
            raise UserError("The model needs input_ids, an array [B, L] of token ids.")
        arrays = {name: _array(name, value) for name, value in given.items()}
        arch = self.definition.arch
        rank = 3 if self.head == "multiple_choice" else 2
        for name in ("input_ids", "decoder_input_ids"):
            if name in arrays and arrays[name].ndim != rank:
                raise UserError(
                    f"{name} has shape {arrays[name].shape}; this model takes {rank} dimensions (batch first)."
                )
        if arch.kind == "encoder-decoder" and "decoder_input_ids" not in arrays:
            arrays["decoder_input_ids"] = self._decoder_inputs(arrays)
            if "decoder_attention_mask" not in arrays and family_of(self.family).hides_padded_targets:
                real = arrays["decoder_input_ids"] != self._pad_id
                arrays["decoder_attention_mask"] = real.astype(np.int32)
        elif arch.kind != "encoder-decoder" and ("decoder_input_ids" in arrays or "decoder_attention_mask" in arrays):
            raise UserError(
                f"This model is a plain {arch.kind}: it has no decoder_input_ids and decoder_attention_mask."
            )
        pairs = [("input_ids", arch.encoder or arch), ("decoder_input_ids", arch)]
        for name, stack in pairs:
            if name in arrays:
                self._check_ids(name, arrays[name], stack, arrays)
        same = {
            "attention_mask": "input_ids",
            "token_type_ids": "input_ids",
            "decoder_attention_mask": "decoder_input_ids",
        }
        for name, other in same.items():
            if name in arrays and arrays[name].shape != arrays[other].shape:
                raise UserError(f"{name} has shape {arrays[name].shape}, but {other} has {arrays[other].shape}.")
        reader = arch.encoder or arch
        types = reader.vocab_size if reader.token_types else reader.num_types
        if types and "token_type_ids" in arrays:
            _check_range("token_type_ids", arrays["token_type_ids"], types)
        if self.head == "classification" and "labels" in arrays:
            self._check_labels(arrays["labels"], len(arrays["input_ids"]))
        return arrays

    def _check_labels(self, labels: Any, rows: int) -> None:
        """Raises a UserError if the labels of a classification are not what its loss takes."""
        classes = self.definition.head.num_labels
        problem = label_losses.problem_of(self._config.get("problem_type"), labels, classes)
        single = problem == "single_label_classification"
        if np.shape(labels)[:1] != (rows,) or labels.size != rows * (1 if single else classes):
            raise UserError(
                f"labels have shape {labels.shape}; {problem} with {classes} outputs takes {'one number' if single else classes} a row of "
                f"{rows}. problem_type in config.json says what labels are; without it integers are classes and floats several labels."
            )
        if single and not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"labels are of type {labels.dtype}; {problem} takes integers, the numbers of classes.")
        if single:
            _check_range("labels", jnp.where(labels == label_losses.IGNORED, 0, labels), classes)

    def _check_ids(self, name: str, ids: Any, stack: Any, arrays: Mapping[str, Any]) -> None:
        _check_range(name, ids, stack.vocab_size)
        if stack.positions == "learned" and "position_ids" not in arrays and ids.shape[-1] > stack.max_length:
            raise UserError(
                f"{name} has rows of {ids.shape[-1]} tokens, but the model has positions for {stack.max_length}. Shorten them, "
                "for example with tokenizer(..., truncation=True)."
            )

    @property
    def _pad_id(self) -> int:
        """What fills up a decoder's inputs."""
        said = self._config.get("pad_token_id")
        return max(self.definition.arch.pad_id if said is None else said, 0)

    def _decoder_inputs(self, arrays: Mapping[str, Any]) -> Any:
        pad, start = self._pad_id, self._config.get("decoder_start_token_id")
        source = arrays.get("labels") if self.head == "seq2seq_lm" else arrays["input_ids"]
        if source is None:
            raise UserError("An encoder-decoder needs decoder_input_ids, or labels to make them from.")
        if family_of(self.family).starts_with_last_token:  # whatever start the files name for `generate`
            return shift_around(source, pad)
        return shift_right(source, pad if start is None else start, pad)

    def embed(
        self,
        texts: Sequence[str] | Sequence[Sequence[int]],
        pooling: str | None = None,
        normalize: bool | None = None,
        batch_size: int = 32,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Embeddings of texts, float32 [len(texts), D], to be compared by `similarity`.

        Args:
          texts: or token ids of each, which are read as they are; cut at the length that the directory names, or the model's.
          pooling: "mean" of the final states of real tokens (Reimers and Gurevych 2019), another of forward.pool, or several with +
            between them, and then no layer that the directory has behind the pooling; None is what the directory says, or mean.
          normalize: to length 1; None is what the directory says, or true.
          batch_size: texts run together.
          prompt_name: of a text that the directory has to be put before each; None is the one that it names as usual, if any.
          prompt: that text itself; "" for none.

        Raises:
          UserError: no tokenizer, no such pooling, or no such prompt.
        """

        def run(batch: Any, *how: Any) -> Any:
            return self._embed(self.params, self._checked(batch), *how)

        return embed_lib.embed(self, run, texts, pooling, normalize, batch_size, prompt_name, prompt)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """How alike embeddings a [N, D] and b [M, D] are, float32 [N, M], as the directory says vectors are compared (cosine)."""
        return embed_lib.similarities(a, b, (self.embedding or Embedding()).similarity)

    def inputs(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Texts as the model has learned to read them, as arrays [B, L]; see decoding.request.read_texts."""
        return read_texts(self.tokenizer, self.definition.arch, texts)

    @functools.cached_property
    def _embed(self) -> Any:
        return embed_lib.program(self.definition)

    def save_pretrained(self, directory: PathLike, max_shard_bytes: int = 5 * 10**9) -> None:
        """Writes config.json, model.safetensors (in shards above a size) and the tokenizer's files for transformers.

        Raises:
          PretrainedError: the format has no class for this family and head.
          DiskError: the directory cannot be written.
        """
        directory = pathlib.Path(directory)
        with reporting_disk_errors(str, directory):
            huggingface.save(
                directory, self.definition, self.family, self.params, self._config, max_shard_bytes, self.report.kept
            )
            if self.tokenizer is not None:
                self.tokenizer.save_files(directory)
            decoding_options.save_defaults(directory, self.generation_config)
            self._save_embedding(directory)

    def save_native(self, directory: PathLike) -> None:
        """Writes a native directory, which keeps heads and shapes that the Hugging Face format has no place for."""
        directory = pathlib.Path(directory)
        with reporting_disk_errors(str, directory):
            native_checkpoint.save(
                directory, self.definition, self.family, self.params, self._config, self.tokenizer, self.plugins
            )
            self._save_embedding(directory)

    def _save_embedding(self, directory: pathlib.Path) -> None:
        if self.embedding is not None and self.embedding.supported:
            sentence_transformers.save(directory, self.embedding, self.definition.arch.hidden_size)

    def generate(self, input_ids: Any = None, prompts: Any = None, attention_mask: Any = None, **arguments: Any) -> Any:
        """Continues prompts, or answers texts (encoder-decoders): token ids for `input_ids`, texts for `prompts`.

        Arguments have transformers' names and meanings: max_new_tokens, do_sample, temperature, top_k, num_beams, ...; see
        decoding/generate.py for what goes in and comes out and decoding/generation_config.py for all of them.
        """
        return generate_lib.generate(self, input_ids, prompts, attention_mask, **arguments)

    def stream(self, prompts: str | None = None, input_ids: Any = None, **arguments: Any) -> Iterator[str]:
        """Pieces of the text that `generate` would give for one prompt, as they come."""
        return generate_lib.stream(self, prompts, input_ids, **arguments)

    def score(self, prompts: Any = None, continuations: Any = (), **inputs: Any) -> list[np.ndarray]:
        """Log-probability [nats] of each token of given continuations (texts, or lists of token ids)."""
        return generate_lib.score(self, prompts, continuations, **inputs)


def _attributes(value: Any, listed: bool = False) -> Any:
    """A value of config.json as ConfigDict takes it: no keys of Python's own, and in lists pairs in place of objects."""
    if isinstance(value, Mapping):
        inner = {key: _attributes(one, listed) for key, one in value.items() if not key.startswith("__")}
        return tuple(inner.items()) if listed else inner
    return [_attributes(one, True) for one in value] if isinstance(value, list | tuple) else value


def _array(name: str, value: Any) -> Any:
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        numbers = array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)
    except ValueError:  # rows of different lengths
        numbers = False
    if not numbers:
        raise UserError(
            f"{name} is no array of numbers with rows of one length. Pad them, for example with tokenizer(..., padding=True)."
        )
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int32)
    if name not in ("labels",):
        raise UserError(f"{name} is of type {array.dtype}; it takes integers.")
    return array.astype(np.float32)


def _check_range(name: str, ids: Any, size: int) -> None:
    if ids.size and not isinstance(ids, jax.core.Tracer):
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= size:
            raise UserError(
                f"{name} holds {low if low < 0 else high}, outside of 0 to {size - 1}. Are they another model's?"
            )


def from_pretrained(
    path: PathLike,
    head: str | None = None,
    dtype: str | None = None,
    mesh: Mesh | str | None = None,
    *,
    num_labels: int | None = None,
    seed: int = 0,
    adapter: PathLike | None = None,
) -> LanguageModel:
    """Reads a model directory.

    Args:
      path: a directory in the Hugging Face format, a native one, that of a training run (its newest checkpoint; the
        averaged parameters if it has them), RUN/checkpoints/STEP, or a peft adapter whose base is on this machine.
      head: what it shall predict, a name of models.head_kinds.HEADS; None is what the directory says. Parts that a new
        head needs are initialized, and named in a warning of the logger "lm_research".
      dtype: "float32", "bfloat16" or "float16", of parameters and computation; None is what the files are in.
      mesh: devices to divide it over: a mesh, or one by name ("fsdp=4,tensor=2", "fsdp+tensor"); None is the default device.
        `generate` then divides rows over data and fsdp, and heads of its cache over tensor.
      num_labels: classes of a classification head; None is what the directory says.
      seed: of initialized parts.
      adapter: a directory of peft's format whose LoRA is added to the weights in `path`.

    Raises:
      PretrainedError: no such directory, an unsupported model, or damaged files.
      MeshError: there is no such mesh, or it can't divide the model.
    """
    directory = path_of(os.fspath(path), "The model's path", error=PretrainedError)
    adapter = adapter and path_of(os.fspath(adapter), "The adapter's path", error=PretrainedError)
    mesh = named_mesh(mesh) if isinstance(mesh, str) else mesh
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise PretrainedError(
            f"dtype is {dtype!r}; it is one of float32, bfloat16, float16, or None for that of the files."
        )
    found = inspect(directory, head, num_labels, adapter)
    params, report = load_params(found, mesh, dtype, seed, fresh_head=head is not None or num_labels is not None)
    definition = with_dtype(found.definition, dtype or str(jax.tree.leaves(params)[0].dtype))
    for line in report.lines():
        LOG.warning("%s: %s", directory, line)
    tokenizer = find_tokenizer(found.files)
    if tokenizer is not None and isinstance(found, native_checkpoint.Native):
        tokenizer = native_checkpoint.tokenizer_of(tokenizer, definition.arch, definition.head.name, found.objective)
    lm = LanguageModel(definition, params, found.family, found.config, tokenizer, report)
    lm.plugins = found.plugins if isinstance(found, native_checkpoint.Native) else ()
    lm.generation_config = decoding_options.load_defaults(found.files)
    if isinstance(found, native_checkpoint.Native) and lm.head in ("causal_lm", "seq2seq_lm"):
        lm.generation_config = decoding_options.token_ids(found.config) | lm.generation_config
    lm.embedding = sentence_transformers.load(found.files)
    return lm


Found = huggingface.Pretrained | native_checkpoint.Native


def inspect(
    directory: pathlib.Path, head: str | None, num_labels: int | None = None, adapter: PathLike | None = None
) -> Found:
    """What a directory of any of the three kinds says about its model; raises a PretrainedError like `from_pretrained`."""
    if not (native_checkpoint.is_native(directory) or native_checkpoint.is_run(directory)):
        return huggingface.inspect(directory, head, num_labels, None if adapter is None else pathlib.Path(adapter))
    if adapter is not None:
        raise PretrainedError(
            f"{directory} is in our own format, to which no peft adapter is added. Write it with convert --to hf first."
        )
    return native_checkpoint.inspect(directory, head, num_labels)


def load_params(
    found: Found, mesh: Mesh | None, dtype: str | None, seed: int, fresh_head: bool
) -> tuple[Params, Report]:
    """Its parameters, see interop/huggingface.py (`fresh_head` is for its files alone: ours tell what fits)."""
    if isinstance(found, native_checkpoint.Native):
        return native_checkpoint.load_params(found, mesh, dtype, seed)
    return huggingface.load_params(found, mesh, dtype, seed, fresh_head)


def find_tokenizer(directory: pathlib.Path) -> Any:
    """The tokenizer in a directory, or None if it has no file of one."""
    if not any(os.path.lexists(directory / name) for name in STARTS):
        return None
    try:
        return load_tokenizer(directory)
    except TokenizerError as error:
        raise PretrainedError(f"The tokenizer in {directory} cannot be read: {error}") from error


def with_dtype(definition: ModelDefinition, dtype: str) -> ModelDefinition:
    """The same model computing in another type."""
    if definition.arch.dtype == dtype:
        return definition
    return define(definition.arch.replace(dtype=dtype), definition.head)

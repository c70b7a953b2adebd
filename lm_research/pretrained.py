"""The Python API: `from_pretrained` loads a model directory; a `LanguageModel` runs, generates, embeds and saves.

    lm = lm_research.from_pretrained("bert-base-uncased")
    lm(**lm.tokenizer("Paris is the [MASK] of France."))["logits"]

A directory is in the Hugging Face format (interop/huggingface.py), in the native format (interop/native_checkpoint.py), or
the directory of a training run.
"""

from __future__ import annotations

import contextlib
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

from lm_research.common.bucket_copies import BucketCopy
from lm_research.common.disk import reporting_disk_errors
from lm_research.common.paths import as_path, path_of
from lm_research.config.run_files import checkpoint_steps
from lm_research.decoding import embed as embed_lib
from lm_research.decoding import generate as generate_lib
from lm_research.decoding import generation_config as decoding_options
from lm_research.decoding.engine import Engine
from lm_research.decoding.generation_request import read_texts
from lm_research.errors import PretrainedError, TokenizerError, UnsupportedTokenizerError
from lm_research.interop import gguf_model, huggingface, native_checkpoint, sentence_transformers
from lm_research.interop.model_directories import inspect, load_params
from lm_research.interop.weight_reader import Report
from lm_research.models import forward as forward_lib
from lm_research.models.call_inputs import InputChecks
from lm_research.models.definition import ModelDefinition, Params, define
from lm_research.models.families import family_of
from lm_research.models.text_embedding import EmbeddingConfig
from lm_research.parallel.mesh import named_mesh
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.loading import holds_tokenizer, load_tokenizer

LOG = logging.getLogger("lm_research")
PathLike = str | os.PathLike[str]


class LanguageModel:
    """A model with its parameters and tokenizer, as `from_pretrained` returns it.

    Attributes:
      config: config.json in the Hugging Face format, with attribute access (`lm.config.hidden_size`).
      definition: the architecture and the head.
      params: nested dict of arrays; stacked layers have a leading axis.
      tokenizer: a tokenizers.base.Tokenizer, or None if the directory has none, or one whose class is not supported.
      family: name of the model family, a module of models/families.
      report: parameters that were initialized, and stored tensors that were left unused, when the model was loaded.
      generation_config: defaults of `generate`, from generation_config.json; {} if there is no such file.
      engine: compiled generation programs for `params`; None until text is generated.
      plugins: modules that may define the family, as listed by the config key `plugins`.
      embedding: defaults of `embed`, written by sentence-transformers or by a run of the embedding task; None if there are none.
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
        self.embedding: EmbeddingConfig | None = None
        self.plugins: tuple[str, ...] = ()
        self.engine: Engine | None = None

    @property
    def config(self) -> FrozenConfigDict | ConfigDict:
        """A read-only view of config.json with attribute access."""
        values = _attributes(self._config)
        try:
            return FrozenConfigDict(values)
        except ValueError:  # a FrozenConfigDict rejects keys with dots, which labels may have
            return ConfigDict(values, allow_dotted_keys=True).lock()

    @property
    def head(self) -> str:
        """Name of the head, a key of models.head_kinds.HEADS ("causal_lm", "masked_lm", "classification", ...)."""
        return self.definition.head.name

    @property
    def context_length(self) -> int | None:
        """Longest input in tokens: the size of the position table, else the value in config.json or the tokenizer; None if unlimited."""
        stack, config = self.definition.arch.encoder or self.definition.arch, self._config
        if stack.positions == "learned":
            return stack.max_length
        limits = (config.get(name) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
        return next(filter(None, limits), stack.max_length) or (self.tokenizer.max_length if self.tokenizer else None)

    @property
    def forward_head(self) -> str:
        """Name of the head for models.forward.forward; differs from `head` in families whose labels are not shifted."""
        return family_of(self.family).loss_heads.get(self.head, self.head)

    @property
    def num_params(self) -> int:
        """Number of parameters, shared ones counted once."""
        return self.definition.num_params

    def __call__(
        self, *, output_hidden_states: bool = False, output_attentions: bool = False, **inputs: Any
    ) -> dict[str, Any]:
        """Run the model on a batch. Each new shape of the inputs compiles once.

            lm(**lm.tokenizer(["A good film.", "A bad film."], padding=True))["logits"]

        Args:
          output_hidden_states: also return `hidden_states`, a tuple of the embeddings and the output of each layer.
          output_attentions: also return `attentions`, a tuple of the attention probabilities of each layer, [B, H, L, L] in sparse
            layers too (transformers' classes return those of LED and LongT5 by window).
          **inputs: NumPy or JAX arrays; sequences may be padded on either side.

            - `input_ids`: [B, L] token ids; [B, choices, L] for multiple choice. The only required input.
            - `attention_mask`: [B, L], 1 for real tokens; all 1 if omitted.
            - `global_attention_mask`: [B, L], 1 for tokens with global attention, in encoders that have it (LED).
            - `token_type_ids`, `task_type_ids`, `position_ids`: [B, L].
            - `decoder_input_ids`, `decoder_attention_mask`: [B, T], encoder-decoders only. If omitted, they are made by
              shifting `labels` one to the right, or `input_ids` for classification and spans.
            - `labels`, or `next_sentence_label`, `sentence_order_label`, `start_positions` and `end_positions`: add `loss` to
              the outputs, as transformers defines it for this head. Positions with the label -100 are ignored.

        Returns:
          A dict of arrays: `logits`; `last_hidden_state` and `pooler_output` of a model without a head; `prediction_logits` and
          `seq_relationship_logits` of the two pre-training heads; `start_logits` and `end_logits` of spans; `loss` if labels
          are given; `encoder_last_hidden_state` of encoder-decoders; `aux_loss`, which is part of `loss`, of mixtures of experts
          whose config.json has `output_router_logits`.

        Raises:
          UserError: an input is unknown, missing, of the wrong shape, longer than the model's positions, or has ids outside
            the vocabulary.
        """
        arrays = self._checks(inputs)
        capture = output_hidden_states or output_attentions
        outputs = self._forward(self.params, arrays, capture)
        excluded = ("" if output_hidden_states else "hidden_states", "" if output_attentions else "attentions")
        names = family_of(self.family).output_names
        selected = {name: x for name, x in outputs.items() if not name.endswith(tuple(filter(None, excluded)))}
        return {names.get(name, name): x for name, x in selected.items()}

    @functools.cached_property
    def _forward(self) -> Any:
        definition, problem_type = self.definition, self._config.get("problem_type")
        head = self.forward_head
        balanced = head == "causal_lm" and self._config.get("output_router_logits")

        def run(params: Params, inputs: Mapping[str, jax.Array], capture: bool) -> dict[str, Any]:
            model = definition.bind(params)
            if balanced:
                return forward_lib.balanced_forward(model, head, inputs, capture)
            return forward_lib.forward(model, head, inputs, capture, problem_type=problem_type)

        return jax.jit(run, static_argnums=2)

    @property
    def _checks(self) -> InputChecks:
        keys = decoding_options.with_decoder_keys(self._config)
        return InputChecks(self.definition, family_of(self.family), self._config, keys)

    def embed(
        self,
        texts: Sequence[str] | Sequence[Sequence[int]],
        pooling: str | None = None,
        normalize: bool | None = None,
        batch_size: int = 32,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Embed texts as vectors; `similarity` compares them.

            vectors = lm.embed(["A cat sleeps.", "A dog runs."])
            lm.similarity(vectors, vectors)  # [2, 2]

        Args:
          texts: texts, or the token ids of each, which are used unchanged. They are truncated at the length in the directory,
            or else at the model's.
          pooling: "mean" of the final states of real tokens (Reimers and Gurevych 2019), another name accepted by
            models.forward.pool, or several joined by "+". Dense layers after the pooling are skipped if it is given. None uses
            the directory's pooling, or mean if it has none.
          normalize: scale vectors to length 1; None uses the directory's setting, or True if it has none.
          batch_size: texts per forward pass.
          prompt_name: name of a prompt stored in the directory, which is put before each text; None uses its default prompt,
            if any.
          prompt: the prompt itself; "" for none. Overrides `prompt_name`.

        Returns:
          float32 [len(texts), D].

        Raises:
          UserError: the model has no tokenizer, or no such pooling or prompt exists.
        """

        def run(batch: Any, *options: Any) -> Any:
            return self._embed(self.params, self._checks(batch), *options)

        return embed_lib.embed(self, run, texts, pooling, normalize, batch_size, prompt_name, prompt)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Compare embeddings a [N, D] with b [M, D] by the directory's similarity (default: cosine); returns float32 [N, M]."""
        return embed_lib.similarities(a, b, (self.embedding or EmbeddingConfig()).similarity)

    def inputs(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Encode texts as the model was trained to read them: a dict of arrays [B, L] for `__call__`; see decoding.generation_request.read_texts."""
        return read_texts(self.tokenizer, self.definition.arch, texts)

    @functools.cached_property
    def _embed(self) -> Any:
        return embed_lib.program(self.definition)

    def save_pretrained(self, directory: PathLike, max_shard_bytes: int = 5 * 10**9) -> None:
        """Write config.json, model.safetensors and the tokenizer's files, which transformers can load.

        Args:
          directory: created if it does not exist.
          max_shard_bytes: larger models are split into several safetensors files.

        Raises:
          PretrainedError: the format has no class for this family and head. `save_native` can write the model.
          DiskError: the directory cannot be written.
        """
        with self._saving(directory) as place:
            huggingface.save(
                place, self.definition, self.family, self.params, self._config, max_shard_bytes, self.report.kept
            )
            if self.tokenizer is not None:
                self.tokenizer.save_files(place)
            decoding_options.save_defaults(place, self.generation_config)

    def save_native(self, directory: PathLike) -> None:
        """Write a native directory, which also stores heads and shapes that the Hugging Face format cannot represent."""
        with self._saving(directory) as place:
            native_checkpoint.save(
                place, self.definition, self.family, self.params, self._config, self.tokenizer, self.plugins
            )

    @contextlib.contextmanager
    def _saving(self, directory: PathLike) -> Iterator[pathlib.Path]:
        """Yield the directory, or the local one that is copied to it, and store the embedding's settings there at the end."""
        address = as_path(directory)
        with BucketCopy(address) as copy, reporting_disk_errors(str, address):
            yield copy.folder
            if self.embedding is not None and self.embedding.supported:
                sentence_transformers.save(copy.folder, self.embedding, self.definition.arch.output_width)

    def generate(self, input_ids: Any = None, prompts: Any = None, attention_mask: Any = None, **arguments: Any) -> Any:
        """Generate text: continue prompts (decoders) or answer texts (encoder-decoders).

            lm.generate(prompts="Once upon a time", max_new_tokens=40, do_sample=True, top_p=0.9, seed=1)  # a list with 1 text
            lm.generate(input_ids=[[464, 3290]], num_beams=4)  # an int32 array [1, L]

        Args:
          input_ids: token ids [B, L], or lists of different lengths. Give these or `prompts`, not both.
          prompts: a text or a list of texts; requires a tokenizer.
          attention_mask: [B, L], 1 for real tokens. Sequences may be padded on either side. If omitted, pad_token_id counts as
            padding in a decoder's input_ids, unless it also ends texts.
          **arguments: `decoder_input_ids` and `decoder_attention_mask` of encoder-decoders, `assistant_model` (a smaller model
            that drafts tokens), and the generation options, which have transformers' names and meanings: max_new_tokens,
            do_sample, temperature, top_k, top_p, num_beams, num_return_sequences, eos_token_id, stop_strings, ... . All are
            listed in decoding.generation_config.GenerationConfig. Defaults come from generation_config.json, or else config.json.

        Returns:
          The new texts for `prompts`, a list with num_return_sequences entries per prompt; for `input_ids`, an int32 array
          [B * num_return_sequences, L] of prompts, new tokens and padding. With return_dict_in_generate=True, a
          decoding.generate.GenerateOutput that holds both, and scores and log-probabilities if requested.

        Raises:
          UserError: an argument is unknown, out of range or conflicts with another; the model cannot generate (its head is
            not causal_lm or seq2seq_lm); or an input does not fit its vocabulary or positions.
        """
        return generate_lib.generate(self, input_ids, prompts, attention_mask, **arguments)

    def stream(self, prompts: str | None = None, input_ids: Any = None, **arguments: Any) -> Iterator[str]:
        """Yield the text that `generate` returns for one prompt, piece by piece as it is generated.

            for piece in lm.stream("Once upon a time", max_new_tokens=40):
                print(piece, end="", flush=True)

        Args:
          prompts: the prompt.
          input_ids: its token ids [1, L] instead.
          **arguments: as for `generate`; beam and contrastive search are not supported.

        Raises:
          UserError: as `generate`; more than one text; or no tokenizer.
        """
        return generate_lib.stream(self, prompts, input_ids, **arguments)

    def score(self, prompts: Any = None, continuations: Any = (), **inputs: Any) -> list[np.ndarray]:
        """Compute the log-probability of each token of given continuations.

            lm.score(["Paris is in"], [" France"])[0].sum()

        Args:
          prompts: a text or a list of texts; the encoder's input of encoder-decoders.
          continuations: one per prompt, texts or lists of token ids. Include the space between a prompt and a word.
          **inputs: `input_ids` and `attention_mask` in place of `prompts`.

        Returns:
          Log-probabilities in nats, one array per prompt.

        Raises:
          UserError: the numbers of prompts and continuations differ, one is empty, or there is no tokenizer for texts.
        """
        return generate_lib.score(self, prompts, continuations, **inputs)


def _attributes(value: Any, in_list: bool = False) -> Any:
    """Convert a value of config.json for ConfigDict: drop keys that begin with "__", and turn objects in lists into pairs."""
    if isinstance(value, Mapping):
        inner = {key: _attributes(one, in_list) for key, one in value.items() if not key.startswith("__")}
        return tuple(inner.items()) if in_list else inner
    return [_attributes(one, True) for one in value] if isinstance(value, list | tuple) else value


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
    """Load a model, its parameters and its tokenizer from a directory.

        lm = lm_research.from_pretrained("bert-base-uncased")
        lm(**lm.tokenizer("Paris is the [MASK] of France."))["logits"]
        lm = lm_research.from_pretrained("gpt2", dtype="bfloat16", mesh="fsdp=4")
        lm.generate(prompts="Once upon a time", max_new_tokens=40)

    Args:
      path: a directory in the Hugging Face or native format; a GGUF file; a training run (its newest checkpoint, with averaged
        parameters if there are any); one checkpoint of a run, RUN/checkpoints/STEP; or a peft adapter whose base model is on this
        machine.
      head: what the model predicts, a key of models.head_kinds.HEADS ("masked_lm", "causal_lm", "classification", "none",
        ...); None uses the directory's. Parameters that a new head lacks are initialized, and listed in a warning of the logger
        "lm_research".
      dtype: type of parameters and computation, "float32", "bfloat16" or "float16"; None uses that of the files.
      mesh: devices to shard the model over: a jax.sharding.Mesh, or a description such as "fsdp=4,tensor=2" or "fsdp+tensor";
        None uses the default device. `generate` shards sequences over data and fsdp, and the heads of its cache over tensor.
      num_labels: number of classes of a classification head; None uses the directory's.
      seed: seed for initialized parameters.
      adapter: a peft directory whose LoRA weights are merged into those in `path`.

    Returns:
      The model. Call it for logits, or use its methods `generate`, `stream`, `score`, `embed` and `save_pretrained`.

    Raises:
      PretrainedError: the directory does not exist, its model is not supported, or its files are damaged.
      MeshError: the mesh does not fit the devices, or cannot shard the model.
    """
    directory = path_of(os.fspath(path), "The model's path", error=PretrainedError)
    adapter = adapter and path_of(os.fspath(adapter), "The adapter's path", error=PretrainedError)
    mesh = named_mesh(mesh) if isinstance(mesh, str) else mesh
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise PretrainedError(
            f"dtype is {dtype!r}; it must be float32, bfloat16, float16, or None for that of the files."
        )
    stored = inspect(directory, head, num_labels, adapter)
    params, report = load_params(stored, mesh, dtype, seed, fresh_head=head is not None or num_labels is not None)
    definition = with_dtype(stored.definition, dtype or str(jax.tree.leaves(params)[0].dtype))
    for line in report.lines():
        LOG.warning("%s: %s", directory, line)
    tokenizer = find_tokenizer(stored.files if isinstance(stored, native_checkpoint.Native) else stored.tokenizer)
    if tokenizer is not None and isinstance(stored, native_checkpoint.Native):
        tokenizer = native_checkpoint.tokenizer_of(tokenizer, definition.arch, definition.head.name, stored.objective)
    lm = LanguageModel(definition, params, stored.family, stored.config, tokenizer, report)
    lm.plugins = stored.plugins if isinstance(stored, native_checkpoint.Native) else ()
    lm.generation_config = decoding_options.load_defaults(stored.files)
    if isinstance(stored, native_checkpoint.Native) and lm.head in ("causal_lm", "seq2seq_lm"):
        lm.generation_config = decoding_options.token_ids(stored.config) | lm.generation_config
    lm.embedding = sentence_transformers.load(stored.files)
    if lm.embedding is None and not isinstance(stored, native_checkpoint.Native):
        lm.embedding = gguf_model.embedding(stored.tokenizer)
    return lm


def average_checkpoints(run: PathLike, count: int, head: str | None = None, dtype: str | None = None) -> LanguageModel:
    """Average the parameters of a run's last `count` checkpoints, as Vaswani et al. 2017, section 6.1, do.

    Args:
      run: directory of a training run whose checkpoint.keep is `count` or more.
      count: number of checkpoints.
      head: as for `from_pretrained`.
      dtype: as for `from_pretrained`.

    Raises:
      PretrainedError: the directory is not a run, or it has fewer checkpoints.
    """
    directory = path_of(os.fspath(run), "The run's path", error=PretrainedError)
    steps = checkpoint_steps(directory / "checkpoints") if (directory / "checkpoints").is_dir() else []
    if len(steps) < count:
        found = f"checkpoints of the steps {', '.join(map(str, steps))}" if steps else "no checkpoints"
        raise PretrainedError(
            f"{directory} has {found}, but {count} are to be averaged. Give a run's directory and a smaller number; a run keeps "
            f"{count} checkpoints with --config.checkpoint.keep={count}."
        )
    models = (from_pretrained(directory / "checkpoints" / str(step), head, dtype) for step in sorted(steps)[-count:])
    lm = next(models)
    total = jax.tree.map(lambda x: np.asarray(x, np.float64), lm.params)
    for other in models:
        total = jax.tree.map(lambda a, x: a + np.asarray(x, np.float64), total, other.params)
    lm.params = jax.tree.map(lambda a, x: jnp.asarray(a / count, x.dtype), total, lm.params)
    return lm


def find_tokenizer(path: pathlib.Path) -> Any:
    """Load the tokenizer of a directory or a GGUF file; return None if it has none, or with a warning if its class is not supported."""
    try:
        return load_tokenizer(path) if holds_tokenizer(path) else None
    except UnsupportedTokenizerError as error:
        LOG.warning("The model is loaded without a tokenizer. %s", error)
        return None
    except TokenizerError as error:
        raise PretrainedError(f"The tokenizer in {path} cannot be read: {error}") from error


def with_dtype(definition: ModelDefinition, dtype: str) -> ModelDefinition:
    """Return the same model with another computation type."""
    if definition.arch.dtype == dtype:
        return definition
    return define(definition.arch.replace(dtype=dtype), definition.head)

"""The interface of a model family: all that differs between families, with the most common case as the default."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any, Literal

from lm_research.config.registries import FAMILIES as _FAMILIES
from lm_research.config.variants import Variants
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families.common import (
    ConfigField,
    ParamMapping,
    check_others,
    check_supported,
    from_config,
    read_keys,
    write_keys,
)

Packing = Literal["", "uncached", "always"]


class Family:
    """A family of models.

    A subclass's file registers an instance, `FAMILIES.register("bert")(Bert())`, together with the dataclass of its own keys in the
    config's section model if it has some. The first sentence of its docstring describes the family.

    Attributes of its models:
      sizes: name of a published size -> keys of the config's section model.
      traits: fields (those of architecture.from_flat) that all of its models have.
      run_traits: further fields of a new model, for which a config.json may have other values.
      head: the head it is pre-trained with, a key of head_kinds.HEADS; empty for the default of its kind.
      output_names: our names of outputs -> those of transformers for this family.
      loss_heads: head -> the head whose loss it has, where labels are not shifted as usual (BART's decoder without its encoder).
      starts_with_last_token: whether decoders start with the last source token, the language code (mBART).
      packed_positions: when `position_ids` without an attention mask divide rows into packed sequences, which begin where a position is not
        the next: "uncached", where config.json has use_cache false, or "always"; empty for never.
      frozen_padding: `Architecture.frozen_padding` of models from a config.json. New models train all rows, because a family does not know
        the padding token of a run's tokenizer.
      reference: the implementation that tests compare it with.
      start_token: key of config.json with the token that decoder inputs begin with if it has no `decoder_start_token_id`.
      hides_padded_targets: whether decoder inputs made from labels are masked where they are padding.
      hides_padding: whether padding tokens are masked where no mask is given: in the source's attention to itself, and in a classifier's
        decoder inputs.

    Attributes of config.json:
      model_types: `model_type` -> the prefix of its class names ("bert" -> "Bert"); the first is written. Empty if transformers has no
        such models, which are then stored in the native format only.
      classes: the rest of the class names -> head; the first with a head is written.
      encoder_classes: those of the classes that have an encoder without a decoder.
      config_fields: keys that map to fields of an Architecture, read and written.
      other_keys: further keys that are read -> their types (documents.check_fields).
      required: key -> the only supported value, or a tuple of them.
      encoder_config: keys that turn a decoder into an encoder with the same weights; None if it is no decoder.
      decoder_config: keys that turn it into a decoder, which may attend to an encoder of another family; None if it cannot be one.

    Attributes of weight files:
      base_prefix: prefix of names in models with a head.
      other_prefixes: further prefixes that files may have instead, which are never written.
      redundant: patterns of tensors without information, which are ignored.
      unread: patterns of tensors that are not used, but written back.
      input_first: ends of names of modules whose matrices are stored [in, out] instead of [out, in], unless they are quantized.
      sinusoids: "encoder" or "decoder" -> name of its table of sinusoidal positions, which files may have; it is written back.
      tie_flags: keys of config.json that define which tables are tied.
      modules: pairs of a pattern of stored names, and the name of the same module in transformers, or the names of the parts that a stored
        tensor has there; adapters have these names.
    """

    sizes: Mapping[str, Mapping[str, Any]] = {}
    traits: Mapping[str, Any] = {}
    run_traits: Mapping[str, Any] = {}
    head: str = ""
    output_names: Mapping[str, str] = {}
    loss_heads: Mapping[str, str] = {}
    starts_with_last_token: bool = False
    reference: str = "transformers 5.24"
    start_token: str = "pad_token_id"
    hides_padded_targets: bool = False
    hides_padding: bool = False
    packed_positions: Packing = ""
    frozen_padding: bool = True

    model_types: Mapping[str, str] = {}
    classes: Mapping[str, str] = {}
    encoder_classes: tuple[str, ...] = ()
    config_fields: tuple[ConfigField, ...] = ()
    other_keys: Mapping[str, Any] = {}
    required: Mapping[str, Any] = {}
    encoder_config: Mapping[str, Any] | None = None
    decoder_config: Mapping[str, Any] | None = None

    base_prefix: str = ""
    other_prefixes: tuple[str, ...] = ()
    redundant: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    input_first: tuple[str, ...] = ()
    sinusoids: Mapping[str, str] = {}
    tie_flags: tuple[str, ...] = ("tie_word_embeddings",)
    modules: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def stored_as(self, arch: Architecture) -> Family:
        """The family in whose format its model of this architecture is stored."""
        return self

    def architecture(self, config: Any, vocab_size: int) -> Architecture:
        """The architecture of a run.

        Args:
          config: the model section, of the settings class that the family is registered with.
          vocab_size: rows of the token table.
        """
        return from_config(config, vocab_size, **{**self.traits, **self.run_fields(config)})

    def run_fields(self, config: Any) -> Mapping[str, Any]:
        """Fields of a new model: `run_traits`, and those that depend on the model section."""
        return self.run_traits

    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        """The architecture of a config.json.

        Args:
          hf: the content of config.json.
          names: names of the tensors in its weight files.

        Raises:
          PretrainedError: a value is not valid or not supported.
        """
        return from_flat(**self.read(hf), **self.traits)

    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """Check all keys, and return the fields of `config_fields`, and `frozen_padding`."""
        check_supported(hf, self.required)
        check_others(hf, self.other_keys)
        fields = read_keys(hf, self.config_fields)
        pad_id = hf.get(
            "pad_token_id", fields.get("pad_id", 0)
        )  # null is no padding token; without the key it is the family's
        return fields | {"frozen_padding": self.frozen_padding and pad_id is not None and pad_id >= 0}

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """A config.json without `architectures`, the inverse of `from_hf`."""
        return write_keys(arch, self.config_fields)

    def prefix(self, arch: Architecture, head: str, kind: str) -> str:
        """The prefix that replaces "@" in the names of `weights`; `kind` is the `model_type`, or "" if it is not known."""
        return "" if head == "none" else self.base_prefix

    def module_names(self, name: str) -> tuple[str, ...]:
        """The names in transformers' modules of a stored tensor, or of its parts."""
        names: tuple[str, ...] = (name,)
        for pattern, others in self.modules:
            if re.search(pattern, name):
                names = tuple(re.sub(pattern, other, one) for one in names for other in others)
        return names

    def of(self, hf: Mapping[str, Any]) -> Family:
        """The form of the family that a config.json describes, if names of weights depend on its keys."""
        return self

    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        """The names of parameters in weight files: all of this architecture with this head; further ones are ignored."""
        raise NotImplementedError


FAMILIES: Variants[Family] = _FAMILIES

"""What a family of models says of itself: everything that differs from one to another, with what most have as the default."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

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


class Family:
    """A family.

    Its file makes a subclass and registers an instance with a sentence on it: `FAMILIES.register("bert")(Bert())`, with the dataclass of
    its keys in the config's section model where it has some of its own.

    Attributes of its models:
      sizes: name of a published size -> keys of the config's section model.
      traits: fields (as architecture.from_flat takes them) that all of its models have in common.
      run_traits: fields of a new model beside these, which a config.json may say otherwise.
      head: what it is pre-trained to do, a key of head_kinds.HEADS; empty: what its kind usually is.
      output_names: our names of outputs -> transformers' for this family.
      loss_heads: head -> the one whose loss it has, where labels are not moved as usual (a decoder alone of BART).
      starts_with_last_token: decoders start with the last source token, the language's code (mBART).
      hides_padded_targets: decoder inputs that are made from labels are hidden where they are padding.

    Attributes of config.json:
      model_types: `model_type` -> what names of its classes begin with ("bert" -> "Bert"); the first is written. Empty: the format has no such models,
        and they are stored as native alone.
      classes: the rest of the names of its classes -> head; of several with a head the first is written.
      encoder_classes: of these, the classes of its encoder alone.
      config_fields: what is read and written.
      other_keys: further keys that are read -> their types (documents.check_fields).
      required: key -> the only value (or values, in a tuple) that is supported.
      decoder_config: keys that make a decoder of it, which may then have an encoder of another family; None: it cannot be one.

    Attributes of weight files:
      base_prefix: what names begin with in models with a head.
      redundant: patterns of tensors that say nothing new.
      unread: patterns of tensors that nothing reads, and that are written back.
      tie_flags: keys of config.json that say which tables are one.
    """

    sizes: Mapping[str, Mapping[str, Any]] = {}
    traits: Mapping[str, Any] = {}
    run_traits: Mapping[str, Any] = {}
    head: str = ""
    output_names: Mapping[str, str] = {}
    loss_heads: Mapping[str, str] = {}
    starts_with_last_token: bool = False
    hides_padded_targets: bool = False

    model_types: Mapping[str, str] = {}
    classes: Mapping[str, str] = {}
    encoder_classes: tuple[str, ...] = ()
    config_fields: tuple[ConfigField, ...] = ()
    other_keys: Mapping[str, Any] = {}
    required: Mapping[str, Any] = {}
    decoder_config: Mapping[str, Any] | None = None

    base_prefix: str = ""
    redundant: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    tie_flags: tuple[str, ...] = ("tie_word_embeddings",)

    @property
    def stored_as(self) -> Family:
        """The family whose files hold its models."""
        return self

    def architecture(self, config: Any, vocab_size: int) -> Architecture:
        """The architecture of a run's model section, the settings it is registered with; `vocab_size` is the rows of its token table."""
        return from_config(config, vocab_size, **{**self.traits, **self.run_fields(config)})

    def run_fields(self, config: Any) -> Mapping[str, Any]:
        """`run_traits`, and those that depend on the model section."""
        return self.run_traits

    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        """The architecture of a config.json, beside weight files that have tensors of these names.

        Raises:
          PretrainedError: it says something that is not supported.
        """
        return from_flat(**self.read(hf), **self.traits)

    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """What `config_fields` say, after all keys are checked."""
        check_supported(hf, self.required)
        check_others(hf, self.other_keys)
        return read_keys(hf, self.config_fields)

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """The inverse of `from_hf`: a config.json, without `architectures`."""
        return write_keys(arch, self.config_fields)

    def prefix(self, arch: Architecture, head: str, kind: str) -> str:
        """What "@" in the names of `weights` stands for; `kind` is the `model_type`, "" where it is not known."""
        return "" if head == "none" else self.base_prefix

    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        """Where arrays lie in weight files: at least those of this architecture with this head, others do not matter."""
        raise NotImplementedError


FAMILIES: Variants[Family] = _FAMILIES

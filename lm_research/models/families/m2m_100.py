"""M2M-100 (Fan et al. 2020, arXiv:2010.11125) and NLLB (NLLB team 2022, arXiv:2207.04672): translation between many languages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.families.bart import Bart
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import EncoderDecoderConfig, with_defaults

_NLLB = dict(intermediate_size=8192, num_heads=16, max_length=1024)


class M2M100(Bart):
    """A pre-norm encoder-decoder whose sinusoidal positions count real tokens, for many languages (Fan et al. 2020)."""

    # The released models: M2M-100 with a vocabulary of 128,112, NLLB's dense ones of 256,206.
    sizes = {
        "418m": dict(num_layers=12, hidden_size=1024, num_heads=16, intermediate_size=4096, max_length=1024),
        "1.2b": dict(num_layers=24, hidden_size=1024, **_NLLB),
        "nllb_3.3b": dict(num_layers=24, hidden_size=2048, **_NLLB),
    }
    # The first position has the number after the padding token's.
    traits = dict(norm="pre", positions="sinusoidal", last_wavelength=True, count_padding=False)
    run_traits = dict(activation="relu", norm_epsilon=1e-5, position_offset=2, pad_id=1, eos_id=2, count_padding=True)

    model_types = {"m2m_100": "M2M100"}
    classes = {"ForConditionalGeneration": "seq2seq_lm", "Model": "none"}
    decoder_config = None
    config_fields = with_defaults(
        Bart.config_fields, {"vocab_size": 128112, "activation_function": "relu", "attention_dropout": 0.1}
    )

    _scales_new = _scales_read = True

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        return fields | {"position_offset": fields["pad_id"] + 1}


FAMILIES.register("m2m_100", EncoderDecoderConfig)(M2M100())

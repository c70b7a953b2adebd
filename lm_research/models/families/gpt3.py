"""GPT-3 (Brown et al. 2020, arXiv:2005.14165): GPT-2 at eight sizes, with 2,048 positions.

The paper alternates dense and locally banded sparse attention; here every layer is dense. Models are stored as GPT-2.
"""

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.gpt2 import GPT2

# Brown et al. 2020, table 2.1: layers, width, heads, head width; the feed-forward layer is four times as wide.
# The table lists 24 heads of 128 for XL, but its 1.3 billion parameters and width of 2,048 imply 16.
_TABLE = {
    "small": (12, 768, 12, 64),
    "medium": (24, 1024, 16, 64),
    "large": (24, 1536, 16, 96),
    "xl": (24, 2048, 16, 128),
    "2.7b": (32, 2560, 32, 80),
    "6.7b": (32, 4096, 32, 128),
    "13b": (40, 5140, 40, 128),
    "175b": (96, 12288, 96, 128),
}


class GPT3(GPT2):
    """GPT-2 at eight sizes, with 2,048 positions (Brown et al. 2020)."""

    sizes = {
        name: dict(
            num_layers=n,
            hidden_size=d,
            num_heads=h,
            head_size=None if h * k == d else k,
            intermediate_size=4 * d,
            max_length=2048,
        )
        for name, (n, d, h, k) in _TABLE.items()
    }
    model_types = {}
    decoder_config = None

    @override
    def stored_as(self, arch: Architecture) -> Family:
        return GPT2()


FAMILIES.register("gpt3")(GPT3())

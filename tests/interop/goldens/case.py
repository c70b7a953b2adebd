"""The description of a golden, for make_goldens.py and the lists of cases in cases_*.py."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Case:
    """A model and its inputs; `labels` names the task, see `draw`."""

    name: str
    kind: str
    config: dict
    labels: str = ""
    length: int = 9
    target: int = 7  # length of the decoder's side
    masks: str = "right left"  # rows 1 and 2 are padded there, or "inside"; "" gives no attention_mask at all
    given_mask: bool = True  # whether that attention_mask is an input
    packed: bool = False  # position_ids of two sequences in rows 0 and 1, and from 2 on in row 2
    types: bool | str = True  # token_type_ids, where the family has them; "tokens": rows of the token table (GPT-2)
    decoder: str = ""  # "given": decoder_input_ids, "masked": with decoder_attention_mask too
    chosen: bool = False  # global_attention_mask, with 2, 1 and 0 positions in the rows
    deep: bool = False  # hidden states and attentions
    text: dict | None = None  # literal text of config.json, where it differs from what save_pretrained writes
    extra: tuple[
        str, ...
    ] = ()  # tensors in addition to those that save_pretrained writes: NAME=LIKE takes LIKE's shape
    steps: float = 0.0  # learning rate of a file of losses
    apart: bool = False  # `extra` are tensors that config.json ties to others of different values
    new_tokens: int = 0  # makes a file of texts: that many tokens, chosen greedily and by 3 beams
    computed: str = ""  # pattern of tensors of the state that follow from the config and are not in the file
    fused: bool = False  # the class makes single parameters of the experts' tensors in the file
    slow: bool = False  # the file is in slow/, and its test runs on request
    absent: tuple[str, ...] = ()  # tensors that the files lack, as others are tied to them
    attention: str = "eager"  # attn_implementation of transformers


def merged(base: dict, **changes) -> dict:
    return base | changes

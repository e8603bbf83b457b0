"""What InstructBLIP's processor gives, as the parts of the model read it."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def straighten(batch: Any, with_image: bool) -> None:
    """Put padding where it changes nothing; for prompts of one length there is none. This changes the batch.

    The processor of transformers puts the image tokens in front of the padding and pads the Q-Former's text on the left, but
    rotary positions without position ids count the padding between picture and text, and the Q-Former counts its positions
    from the beginning of the row.

    Args:
        batch: `input_ids`, `attention_mask`, `qformer_input_ids` and `qformer_attention_mask`, each `[n, length]`.
        with_image: whether there are pictures; without, what is for the Q-Former is dropped.
    """
    _sort(batch, "", padding_first=True)
    if with_image:
        _sort(batch, "qformer_", padding_first=False)
    else:
        del batch["qformer_input_ids"], batch["qformer_attention_mask"]


def _sort(batch: Any, prefix: str, padding_first: bool) -> None:
    """Move the padding of each row to one end, the rest in its order."""
    mask: Tensor = batch[f"{prefix}attention_mask"]
    order = mask.argsort(dim=1, stable=True, descending=not padding_first)
    for name in ("attention_mask", "input_ids"):
        batch[prefix + name] = batch[prefix + name].gather(1, order)

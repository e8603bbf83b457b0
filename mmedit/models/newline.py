"""PaliGemma's processor ends every text with the newline that ends an instruction there, also where an answer has begun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmedit.errors import RequestError


def without_newlines(texts: Sequence[str], with_image: bool) -> list[str]:
    """Rendered prompts without their last newline, which the processor puts there.

    Raises:
        RequestError: if there is no picture: the processor takes none without.
    """
    if not with_image:
        raise RequestError(
            "this model answers about pictures only", got="a prompt without a picture", do="give a picture"
        )
    return [text.removesuffix("\n") for text in texts]


def end_instructions(batch: Any, begun: Sequence[bool], pad: int) -> None:
    """Take the processor's newline off the rows whose answer has begun, so that they end in their answer prefix; changes the batch.

    Args:
        batch: `input_ids`, `attention_mask` and `token_type_ids`, each `[n, length]`, padded on the left; `labels`, for
            training, are dropped.
        begun: for each row, whether it ends in an answer prefix; a newline stands in front of that already.
        pad: the padding token.
    """
    mask = batch["attention_mask"]
    for row, has_begun in zip(mask, begun, strict=True):
        if has_begun:
            row[-1] = 0
    batch["input_ids"].masked_fill_(mask == 0, pad)
    order = mask.argsort(dim=1, stable=True)  # padding first, the rest in its order
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        batch[name] = batch[name].gather(1, order)
    batch.pop("labels", None)

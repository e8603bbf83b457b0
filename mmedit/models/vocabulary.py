"""Rows of W_U that stand for no word.

Where a checkpoint says that the tokens at the end of its vocabulary are never to be written (`suppress_tokens`), as one does
that got a row for `<image>` only so that the row has a number, they are not a part of what the model can say.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from torch import Tensor, nn


def n_words(model: Any, n_rows: int) -> int:
    """How many rows of W_U stand for what the model may write.

    Args:
        model: a transformers model.
        n_rows: of its W_U.
    """
    never = set(getattr(getattr(model, "generation_config", None), "suppress_tokens", None) or ())
    while n_rows - 1 in never:
        n_rows -= 1
    return n_rows


def leave_out(unembedding: nn.Module, n_vocab: int) -> None:
    """Cut the logits of the rows after `n_vocab` off what an unembedding gives, if there are any; its weights stay."""
    if n_vocab == len(unembedding.weight) or unembedding in _cut:  # type: ignore[arg-type]
        return
    _cut.add(unembedding)

    def cut(module: nn.Module, args: Any, logits: Tensor) -> Tensor:
        return logits[..., :n_vocab]

    unembedding.register_forward_hook(cut)


_cut: WeakSet[nn.Module] = WeakSet()  # each once, however often its model is wrapped

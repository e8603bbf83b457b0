"""Models that compute what is no number: NaN says nothing, which must not be taken for a caption without the word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mmedit.errors import ModelError, RequestError


def bad_weight(model: nn.Module) -> str | None:
    """The first parameter of a model that holds NaN or infinity, by its full name, which says the layer; None if all are finite.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.weight.data[0, 1] = torch.nan
        >>> bad_weight(nn.Sequential(layer))
        '0.weight'
    """
    for name, weight in model.named_parameters():
        known = weight.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64) and not weight.is_meta
        if known and not bool(weight.detach().isfinite().all()):
            return name
    return None


def not_finite(model: nn.Module, site: object = None) -> ModelError:
    """The error for a model whose activations at a site, or whose weights, are not finite."""
    found = bad_weight(model)
    return ModelError(
        "the model computes with what is not a finite number", where=site or found,
        got=f"NaN or infinity in {found}" if found else f"an overflow in {next(model.parameters()).dtype}; its weights are finite",
        do="get its weights again" if found else "load it in float32 or bfloat16",
    )  # fmt: skip


@contextmanager
def suspecting(model: nn.Module) -> Iterator[None]:
    """Where a request fails because of what the model says, look first whether its weights are at fault.

    Raises:
        ModelError: in place of a RequestError, if a weight is not finite.
    """
    try:
        yield
    except RequestError as error:
        if bad_weight(model) is not None:
            raise not_finite(model) from error
        raise

"""Gradients in a model whose own weights take none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def without_gradients_of_weights(model: nn.Module) -> Iterator[None]:
    """Gradients are on, but not those of the weights: the graph then holds far less, and nothing of the vision tower.

    Args:
        model: whose parameters ask for gradients again after any exit, those that did before.

    Example:
        >>> layer, x = nn.Linear(2, 1), torch.ones(2, requires_grad=True)
        >>> with without_gradients_of_weights(layer):
        ...     layer(x).backward()
        >>> x.grad is None, layer.weight.grad is None, layer.weight.requires_grad
        (False, True, True)
    """
    asking = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for name, parameter in model.named_parameters():  # by name: accelerate puts others in place of offloaded ones
            if name in asking and not parameter.is_inference():
                parameter.requires_grad_(True)

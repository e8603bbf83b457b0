"""On which device a model takes its inputs, wherever its weights are."""

from __future__ import annotations

from typing import Any

import torch


def input_device(model: Any) -> torch.device:
    """The device for a model's inputs.

    Args:
        model: a transformers model; accelerate may have spread it over devices, or offloaded parts of it.

    Returns:
        That of its first weights; where these are offloaded, that where its embedding is run.

    Example:
        >>> import mmedit
        >>> input_device(mmedit.load("iconworld-llava").model)
        device(type='cpu')
    """
    first: torch.device = next(model.parameters()).device
    if first.type != "meta":
        return first
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")

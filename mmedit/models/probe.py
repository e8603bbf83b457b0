"""Does what W_out writes reach the residual stream as it is?

The contribution score of Pan et al. takes it for granted. In some families a norm or a scale stands in between, so every
model is asked: each layer runs twice on two tokens of text, the second time with a vector added to its W_out's output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmedit.models.architecture import Architecture, WOut
from mmedit.neuron import Site

TOLERANCE = 0.02  # of the added vector's length; half precision rounds to a few thousandths


def residual_is_direct(model: nn.Module, architecture: Architecture) -> dict[Site, bool | None]:
    """Ask a model whether its W_outs add to the residual stream directly.

    Args:
        model: a transformers model.
        architecture: its architecture.

    Returns:
        For each site True if a vector added to its output is added to the layer's output, False if it is changed on the
        way, None if it could not be tried (the layer does not run on text alone, or is not called so).

    Example:
        >>> import mmedit
        >>> vlm = mmedit.load("iconworld-llava")
        >>> set(residual_is_direct(vlm.model, vlm.architecture).values())
        {True}
    """
    calls: dict[int, tuple[Any, Any, Any]] = {}
    layers = list(architecture.layers.children())

    def keep(index: int) -> Any:
        return lambda module, args, kwargs, output: calls.update({index: (args, kwargs, output)})

    handles = [layer.register_forward_hook(keep(i), with_kwargs=True) for i, layer in enumerate(layers)]
    device = next(model.parameters()).device
    ids = [token for token in range(5, 8) if token != architecture.image_token_id][:2]
    try:
        with torch.inference_mode():
            decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
            decoder(input_ids=torch.tensor([ids], device=device), use_cache=False)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError):
        calls.clear()  # a family that needs more than text; its scores are then reported as unchecked
    finally:
        for handle in handles:
            handle.remove()
    return {
        site: _adds(w_out, layers[site.layer], *calls[site.layer]) if site.layer in calls else None
        for site, w_out in architecture.w_outs.items()
    }


def _adds(w_out: WOut, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> bool:
    """Whether a vector added to W_out's output comes out of the layer unchanged."""
    before = _hidden(output)
    generator = torch.Generator().manual_seed(0)
    added = torch.randn(before.shape[-1], generator=generator).to(before) * before.float().std().to(before)
    handle = w_out.module.register_forward_hook(lambda module, inputs, out: out + added)
    try:
        with torch.inference_mode():
            moved = (_hidden(layer(*args, **kwargs)) - before).float()
    finally:
        handle.remove()
    return bool(((moved - added.float()).norm(dim=-1) <= TOLERANCE * added.float().norm()).all())


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden

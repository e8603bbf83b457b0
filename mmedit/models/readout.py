"""How what a W_out writes moves a logit: through norms, scales and a softcap, on the way that no other layer changes.

A norm is taken as the linear map that it is while the scale that it divides by is held where it was, as is usual in
attributing logits; then the writings of all layers add up to the logit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmedit.errors import ModelError
from mmedit.neuron import Site

if TYPE_CHECKING:
    from mmedit.models.architecture import Architecture


@dataclass(frozen=True)
class Route:
    """How what a W_out writes reaches the final norm.

    Args:
        scale: what it is multiplied with, in its own layer and those after it.
        norm: a norm that it passes in its own layer.
    """

    scale: float = 1.0
    norm: nn.Module | None = None

    @property
    def direct(self) -> bool:
        """Whether it arrives as it was written."""
        return self.scale == 1.0 and self.norm is None


@dataclass(frozen=True)
class Head:
    """How logits come from what W_U makes of the final norm's output.

    Args:
        scale: what it is multiplied with.
        softcap: the c of c · tanh(x / c), if there is one.
    """

    scale: float = 1.0
    softcap: float | None = None

    def logits(self, u: Tensor) -> Tensor:
        """The logits of values that W_U gave."""
        x = self.scale * u
        return x if self.softcap is None else self.softcap * torch.tanh(x / self.softcap)

    def slope(self, u: Tensor) -> Tensor:
        """How fast the logits change with the values that W_U gave."""
        flat = torch.full_like(u, self.scale)
        return flat if self.softcap is None else flat * (1 - torch.tanh(self.scale * u / self.softcap) ** 2)


@dataclass(frozen=True)
class LinearNorm:
    """A norm at one input, with its scale held: x ↦ gain ⊙ (x − mean(x)) + bias, or without the mean.

    Args:
        gain: `[d_model]` in float32.
        centred: whether the mean is taken off.
    """

    gain: Tensor
    centred: bool

    def back(self, direction: Tensor) -> Tensor:
        """What a direction of the output is on the side of the input `[d_model]`."""
        scaled = self.gain * direction
        return scaled - scaled.mean() if self.centred else scaled


def linear_norm(norm: nn.Module, x: Tensor) -> LinearNorm:
    """The linear map that a norm is at an input.

    Args:
        norm: a LayerNorm, an RMS norm, or one of the families' variants of them.
        x: its input `[d_model]`.

    Example:
        >>> norm, x = nn.RMSNorm(4), torch.tensor([1.0, -2.0, 3.0, 4.0])
        >>> torch.allclose(linear_norm(norm, x).gain * x, norm(x))
        True
    """
    signs = torch.ones_like(x)
    signs[1::2] = -1
    with torch.inference_mode():  # forward, not the call: hooks are for the model's own use
        ones, alternating, zero, y = (
            norm.forward(v).float() for v in (torch.ones_like(x), signs, torch.zeros_like(x), x)
        )
        weight, centred = (alternating - zero) * signs.float(), bool((ones - zero).norm() < 0.01 * alternating.norm())
        moved = weight * (x.float() - x.float().mean() if centred else x.float())
        size = float((y - zero) @ moved / moved.square().sum().clamp_min(1e-30))
    return LinearNorm(weight * size, centred)


def directions(
    architecture: Architecture, token_id: int, inputs: Callable[[nn.Module], Tensor], sites: Iterable[Site]
) -> dict[Site, Tensor]:
    """The direction in which each W_out writes a token at one position, all the way to the logit.

    Args:
        architecture: of the model; where its probe found no way that it knows, the direct one is taken.
        token_id: the token.
        inputs: from a norm to what entered it there `[d_model]`.
        sites: which W_outs.

    Returns:
        `{site: [d_model]}` in float32: o · (row · direction) is how much the neuron moves the logit, norms' scales held.

    Raises:
        ModelError: if the model has no final norm.
    """
    final = architecture.final_norm
    if final is None:
        raise ModelError(
            "final_norm='fold' needs a norm before the unembedding", got=f"model_type {architecture.model_type!r}",
            do="use final_norm='ignore', as the paper does",
        )  # fmt: skip
    column, x, head = architecture.w_u[token_id].float(), inputs(final), architecture.head or Head()
    with torch.inference_mode():
        normed: Any = final.forward(x)
        slope = head.slope((column.to(x.device) * normed.float()).sum())
        at_final = linear_norm(final, x).back(column.to(x.device)) * slope
    found = {}
    for site in sites:
        route = architecture.routes.get(site) or Route()
        through = linear_norm(route.norm, inputs(route.norm)) if route.norm else None
        arriving = at_final if route.scale == 1.0 else at_final * route.scale
        found[site] = through.back(arriving.to(through.gain.device)) if through else arriving
    return found

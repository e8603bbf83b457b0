"""Running one decoder layer again with what its linear maps gave the first time, and a vector added somewhere.

What comes out is the way that the vector takes by itself: through norms, scales and sums, but not through the answers of
neurons and attention to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mmedit.models.w_out import WOut

MAPS = (nn.Linear, Conv1D, nn.Conv1d, nn.Embedding)  # and modules with experts


class Replay:
    """One layer, to be run again.

    Args:
        layer: the decoder layer.
        call: the arguments, keywords and output of its call.
        w_outs: its W_outs.
    """

    def __init__(self, layer: nn.Module, call: tuple[Any, Any, Tensor], w_outs: list[WOut]) -> None:
        self._layer, (self._args, self._kwargs, output) = layer, call
        fused = {w_out.module for w_out in w_outs if w_out.fused}
        maps = [module for module in layer.modules() if isinstance(module, MAPS) or module in fused]
        self.norms = [m for m in layer.modules() if "norm" in type(m).__name__.lower() and m not in maps]
        self._given: dict[nn.Module, Any] = {}
        handles = [m.register_forward_hook(lambda m, args, out: self._given.update({m: _copy(out)})) for m in maps]
        try:
            self._before = {place: hidden.clone() for place, hidden in self._run(None, None).items()}
        finally:
            for handle in handles:
                handle.remove()
        size = self._before[None].float().std()
        noise = torch.randn(output.shape[-1], generator=torch.Generator().manual_seed(0))
        self._added = (noise.to(size.device) * size).to(output.dtype)
        self._close = rounding(output.dtype)

    def scale(self, at: nn.Module | WOut | None, into: nn.Module | None = None) -> float | None:
        """What a vector is multiplied with on its way, if by the same number for every vector and position.

        Args:
            at: where it is added: to the output of a W_out or a norm, or to the layer's input when None.
            into: the norm that it is seen to enter; where the layer ends when None.

        Returns:
            The number, or None if the vector vanishes or becomes another one.
        """
        found = []
        for size in (1.0, 0.5):  # what a norm makes of a vector depends on the vector's size
            after = self._run(at, size * self._added)
            if into not in after or after[into].shape != self._before[into].shape:
                return None
            before = self._run(at, 0 * self._added) if isinstance(at, WOut) and at.gate else self._before
            found.append(self._multiple(after[into] - before[into], size * self._added))
        first, second = found
        if first is None or second is None or abs(first - second) > self._close * max(1.0, abs(first)):
            return None
        return 1.0 if abs(first - 1) < self._close else first

    def _multiple(self, moved: Tensor, added: Tensor) -> float | None:
        """Which multiple of a vector was added at every position; None if none was."""
        if moved.shape[-1] != added.shape[-1]:
            return None
        moved, added = moved.float(), added.float().to(moved.device)
        scale = float((moved @ added).mean() / (added @ added))
        off = float((moved - scale * added).norm(dim=-1).max() / added.norm())
        return scale if abs(scale) > self._close and off < self._close * max(1.0, abs(scale)) else None

    def _run(self, at: nn.Module | WOut | None, added: Tensor | None) -> dict[nn.Module | None, Tensor]:
        """Run the layer: what entered each of its norms, and under None what came out."""
        args, kwargs, seen = self._args, self._kwargs, dict[nn.Module | None, Tensor]()
        forwards: dict[nn.Module, Callable[..., Any]] = {
            module: lambda *args, output=output, **kwargs: _copy(output) for module, output in self._given.items()
        }
        if added is not None and isinstance(at, WOut):
            shifted = at.shifted(self._given[at.module], added)
            forwards[at.module] = lambda *args, **kwargs: shifted
            if at.gate:  # opened, since it counts as a part of the activations
                opened = torch.full_like(self._given[at.gate], 100.0)
                forwards[at.gate] = lambda *args, **kwargs: opened
        elif added is not None and at is None and args:
            args = (args[0] + added, *args[1:])
        elif added is not None and at is None:
            kwargs = kwargs | {"hidden_states": kwargs["hidden_states"] + added}
        handles = [n.register_forward_pre_hook(lambda n, args: seen.update({n: args[0]})) for n in self.norms]
        if isinstance(at, nn.Module):
            handles.append(at.register_forward_hook(lambda module, args, output: output + added))
        try:
            with _forwards(forwards):
                seen[None] = hidden_of(self._layer(*args, **kwargs))
        finally:
            for handle in handles:
                handle.remove()
        return seen


@contextmanager
def _forwards(replaced: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Have modules run other functions for a while."""
    own = {module: module.__dict__["forward"] for module in replaced if "forward" in module.__dict__}
    try:
        for module, forward in replaced.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in replaced:
            module.__dict__.pop("forward", None)
        for module, forward in own.items():
            module.__dict__["forward"] = forward


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a decoder layer gives."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def rounding(dtype: torch.dtype) -> float:
    """How far a few roundings to a type may carry, as a part of the whole."""
    return max(1e-3, 2.5 * torch.finfo(dtype).eps)


def _copy(output: Any) -> Any:
    """What a module gave, safe from those who change it in place."""
    if isinstance(output, tuple):
        return tuple(map(_copy, output))
    return output.clone() if isinstance(output, Tensor) else output

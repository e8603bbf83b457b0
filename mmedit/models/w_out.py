"""One second feed-forward matrix: its rows to read and write, and where its activations pass by while the model runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from mmedit.errors import ModelError
from mmedit.models.experts import Fused, Pick
from mmedit.neuron import Expert, Site


@dataclass(frozen=True)
class Hooks:
    """Hooks that belong together."""

    handles: list[RemovableHandle]

    def remove(self) -> None:
        """Take all of them out again."""
        for handle in self.handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class WOut:
    """One second feed-forward matrix, seen as `[d_ffn, d_model]`: row i is neuron i's output vector.

    Args:
        site: where it is.
        module: the layer that holds the weight: a Linear, a Conv1D, or all experts of a fused module.
        name: of the weight in `model.named_parameters()`; experts of one module share it.
        path: of the module in the model.
        act_fn: the module whose output is act(gate), before the up factor, if there is one.
        gate: the module whose sigmoid all that this W_out writes is multiplied with, if there is one.
        fused: how the weight and the activations of several experts are laid out; None for a W_out of its own.
    """

    site: Site
    module: nn.Module
    name: str
    path: str = ""
    act_fn: nn.Module | None = None
    gate: nn.Module | None = None
    fused: Fused | None = None

    @property
    def layer(self) -> int:
        """Its decoder layer, from 0."""
        return self.site.layer

    @property
    def expert(self) -> Expert:
        """Its expert's number, `"shared"`, or None for a dense feed-forward."""
        return self.site.expert

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as the module stores it; several experts may lie in it."""
        weight: nn.Parameter = self.fused.weight if self.fused else self.module.weight  # type: ignore[assignment]
        return weight

    @property
    def matrix(self) -> Tensor:
        """The weight as `[d_ffn, d_model]`; a view, unless several shared experts are put side by side."""
        return self._stacked.flatten(0, 1)

    def rows(self, units: Tensor) -> Tensor:
        """Copies of rows `[k, d_model]`, in the weight's own type, on the CPU."""
        stacked, places = self._places(units)
        return stacked[places].cpu()

    def write(self, units: Tensor, rows: Tensor) -> None:
        """Put rows `[k, d_model]` in place; touches nothing else."""
        stacked, places = self._places(units)
        stacked[places] = rows.to(stacked.device, stacked.dtype)

    @property
    def d_ffn(self) -> int:
        # a Linear's own word first: packed weights have other shapes
        return int(getattr(self.module, "in_features", None) or self._stacked.shape[:2].numel())

    @property
    def d_model(self) -> int:
        return int(getattr(self.module, "out_features", None) or self._stacked.shape[2])

    def capture(self, pick: Pick, keep: Callable[[Any], None], activation: str = "w_out_input") -> Hooks:
        """Have every call of the model hand on the activations of this W_out, and of all that share its module.

        Args:
            pick: chooses positions from what a layer sees, `[pictures · positions, n]` in any shape, and gives `[k, n]`.
            keep: is given a record of the activations at these positions, for `recorded`.
            activation: `w_out_input`, or `act_fn` for what comes out of the activation function's module.

        Returns:
            The hooks, to be removed.

        Raises:
            ModelError: if `act_fn` is asked for and there is no such module.
        """
        if activation == "act_fn" and self.act_fn is None:
            raise ModelError(
                "this layer has no activation function as a module", where=str(self.site),
                do="use activation='w_out_input'",
            )  # fmt: skip
        if self.fused:
            return Hooks([self.fused.capture(pick, keep)])
        seen: dict[str, Tensor] = {}

        def see(name: str, values: Tensor) -> None:
            seen[name] = pick(values)
            if self.gate is None:
                keep(seen.pop("o").clone())
            elif len(seen) == 2:  # in either order
                keep(seen.pop("o") * torch.sigmoid(seen.pop("gate")))

        gated = [self.gate.register_forward_hook(lambda m, args, output: see("gate", output))] if self.gate else []
        if activation == "act_fn" and self.act_fn is not None:
            return Hooks([self.act_fn.register_forward_hook(lambda m, args, output: see("o", output)), *gated])
        return Hooks([self.module.register_forward_pre_hook(lambda m, args: see("o", args[0])), *gated])

    def recorded(self, record: Any, row: int) -> Tensor:
        """This W_out's activations in what `capture` kept, at the position in that row, `[d_ffn]`.

        Those of an expert are multiplied with its routing weight, and those of a gated shared expert with its gate, so that
        o · row is what a neuron adds; they are 0 where the expert is not routed to.
        """
        if self.fused:
            return self.fused.recorded(record, row, self.expert, self.d_ffn)
        activations: Tensor = record[row]
        return activations.clone()

    def shifted(self, output: Any, added: Tensor) -> Any:
        """What the module would have given, had a vector `[d_model]` been added to the writings of this W_out."""
        return self.fused.shifted(output, added) if self.fused else output + added

    def _places(self, units: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A view of the weight, and where in it rows are."""
        if self.fused is None:
            own = self._own
            return own, (units.to(own.device),)
        stacked = self.fused.stacked(self.expert)
        units = units.to(stacked.device)
        return stacked, (units // stacked.shape[1], units % stacked.shape[1])

    @property
    def _own(self) -> Tensor:
        """A view of a weight of its own, as `[d_ffn, d_model]`."""
        weight: Tensor = self.module.weight.detach()  # type: ignore[operator]
        return weight if isinstance(self.module, Conv1D) else weight.T

    @property
    def _stacked(self) -> Tensor:
        """A view of the weight as `[experts, d_ffn, d_model]`; the first size is 1 but where shared experts count as one."""
        return self.fused.stacked(self.expert) if self.fused else self._own[None]

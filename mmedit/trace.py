"""Recording what enters W_out while a model generates, with hooks that are gone after every exit."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmedit.errors import ModelError
from mmedit.models.architecture import Architecture, WOut
from mmedit.neuron import Site

Activation = Literal["w_out_input", "act_fn"]


class Trace:
    """Record the activation `o` of every neuron at the last position of each forward call.

    One copy of the last position per W_out and call: in KV-cached generation the n-th call is the one that predicts the
    n-th new token. Batches must be padded on the left, so that the last position is never padding.

    Args:
        architecture: of the model that will run.
        sites: which W_outs to record; all when None.
        activation: `w_out_input` is what enters W_out, for a gated FFN act(gate)·up; `act_fn` is act(gate) alone, which
            the code published with the paper records.
        residual: also record what enters the final norm.

    Raises:
        ModelError: on entering, if `act_fn` is asked for and a layer has none as a module.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> vlm = mmedit.load("iconworld-llava")
        >>> with Trace(vlm.architecture) as trace:
        ...     generation = vlm.generate([list(benchmark_pictures(2))[1][0]])[0]
        >>> trace.activations(Site(0)).shape == (len(generation.ids) + 1, 1, 512)  # steps, pictures, d_ffn
        True
    """

    def __init__(
        self,
        architecture: Architecture,
        sites: Iterable[Site] | None = None,
        activation: Activation = "w_out_input",
        residual: bool = False,
    ) -> None:
        self.architecture, self.activation, self.residual = architecture, activation, residual
        self.sites = sorted(architecture.w_outs) if sites is None else list(sites)
        self._steps: dict[Site, list[Tensor]] = {site: [] for site in self.sites}
        self._residuals: list[Tensor] = []
        self._shape = (0, 0)  # pictures and positions of the current call; some W_outs see them flattened
        self._handles: list[Any] = []

    def __enter__(self) -> Trace:
        try:
            self._handles.append(
                next(self.architecture.layers.children()).register_forward_pre_hook(self._see_shape, with_kwargs=True)
            )
            for site in self.sites:
                self._hook(self.architecture.w_out(site))
            if self.residual and self.architecture.final_norm is not None:
                self._handles.append(self.architecture.final_norm.register_forward_pre_hook(self._see_residual))
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Take every hook out again."""
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()

    def activations(self, site: Site) -> Tensor:
        """What was recorded at a site, `[steps, pictures, d_ffn]`."""
        return torch.stack(self._steps[site])

    def at(self, site: Site, step: int, row: int) -> Tensor:
        """What was recorded at a site when one new token of one picture was predicted, `[d_ffn]`."""
        return self._steps[site][step][row].clone()

    def residual_at(self, step: int, row: int) -> Tensor:
        """What entered the final norm there, `[d_model]`."""
        return self._residuals[step][row].clone()

    def clear(self) -> None:
        """Forget what was recorded, to record the next batch."""
        for steps in self._steps.values():
            steps.clear()
        self._residuals.clear()

    def _hook(self, w_out: WOut) -> None:
        steps = self._steps[w_out.site]
        if self.activation == "w_out_input":
            self._handles.append(
                w_out.module.register_forward_pre_hook(lambda module, args: steps.append(self._last(args[0])))
            )
            return
        if w_out.act_fn is None:
            raise ModelError(
                "this layer has no activation function as a module",
                where=str(w_out.site),
                do="use activation='w_out_input'",
            )
        self._handles.append(
            w_out.act_fn.register_forward_hook(lambda module, args, output: steps.append(self._last(output)))
        )

    def _see_shape(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._shape = (hidden.shape[0], hidden.shape[1])

    def _see_residual(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._residuals.append(self._last(args[0]))

    def _last(self, hidden: Tensor) -> Tensor:
        return hidden.detach().reshape(*self._shape, hidden.shape[-1])[:, -1].clone()

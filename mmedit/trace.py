"""Recording what enters W_out while a model generates, with hooks that are gone after every exit."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmedit.models.architecture import Architecture
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
        norms: also record what enters the norms between these W_outs and the logits.

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
        norms: bool = False,
    ) -> None:
        self.architecture, self.activation = architecture, activation
        self.sites = sorted(architecture.w_outs) if sites is None else list(sites)
        self._w_outs = {site: architecture.w_out(site) for site in self.sites}
        self._records: dict[nn.Module, dict[int, Any]] = {w_out.module: {} for w_out in self._w_outs.values()}
        self.norms = architecture.norms_after(self.sites) if norms else []
        self._entered: dict[nn.Module, dict[int, Tensor]] = {norm: {} for norm in self.norms}
        self._n_steps = 0
        self._shape = (0, 0)  # pictures and positions of the current call; some W_outs see them flattened
        self._words: Tensor | None = None  # each picture's positions that are words, where some W_outs see only these
        self._handles: list[Any] = []

    def __enter__(self) -> Trace:
        try:
            self._handles.append(
                next(self.architecture.layers.children()).register_forward_pre_hook(self._see_shape, with_kwargs=True)
            )
            for w_out in {w_out.module: w_out for w_out in self._w_outs.values()}.values():  # experts share a module
                self._handles.append(w_out.capture(self._last, partial(self._keep, w_out.module), self.activation))
            for norm in self.norms:
                self._handles.append(norm.register_forward_pre_hook(self._see_norm))
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
        steps, rows = range(self._n_steps), range(self._shape[0])
        return torch.stack([torch.stack([self.at(site, step, row) for row in rows]) for step in steps])

    @property
    def n_steps(self) -> int:
        """How many forward calls were recorded."""
        return self._n_steps

    def at(self, site: Site, step: int, row: int) -> Tensor:
        """What was recorded at a site when one new token of one picture was predicted, `[d_ffn]`."""
        w_out = self._w_outs[site]
        return w_out.recorded(self._records[w_out.module][step], row)

    def entered(self, norm: nn.Module, step: int, row: int) -> Tensor:
        """What entered a norm there, `[d_model]`."""
        return self._entered[norm][step][row]

    def clear(self) -> None:
        """Forget what was recorded, to record the next batch."""
        for records in (*self._records.values(), *self._entered.values()):
            records.clear()
        self._n_steps = 0

    def _see_shape(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, family = args[0] if args else kwargs["hidden_states"], self.architecture.family
        pictures, positions = hidden.shape[family.batch_axis : family.batch_axis + 2]
        self._shape, self._n_steps = (pictures, positions), self._n_steps + 1
        at_picture = kwargs.get(family.picture_mask or "")
        self._words = None if at_picture is None else (~at_picture.bool()).sum(1)

    def _keep(self, module: nn.Module, record: Any) -> None:
        self._records[module][self._n_steps - 1] = record

    def _see_norm(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._entered[module][self._n_steps - 1] = self._last(args[0]).clone()

    def _last(self, hidden: Tensor) -> Tensor:
        """Each picture's last position, in what a layer sees: all positions, or those that are not a picture's."""
        rows = hidden.detach().flatten(0, -2)
        if self._words is not None and len(rows) != self._shape[0] * self._shape[1]:
            return rows[self._words.cumsum(0).to(rows.device) - 1]
        return rows.reshape(*self._shape, rows.shape[-1])[:, -1]

"""Mixtures of experts: where a module that holds many experts keeps their W_outs, and what activations its neurons had.

transformers stacks the W_outs of all experts of a layer in one parameter, and multiplies with it inside of one module, so
no hook sees what enters a W_out. What the module is given is enough to work it out, for the chosen positions only.

The activation of an expert's neuron includes the routing weight: with it, o · row is what the neuron adds to the output.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from mmedit.errors import ModelError
from mmedit.neuron import Expert

Pick = Callable[[Tensor], Tensor]
W_OUT = "down_proj"  # what a fused module calls its W_outs


class Routed(NamedTuple):
    """Which experts some positions went to, and what their neurons' activations were."""

    experts: Tensor  # [n, k]
    o: Tensor  # [n, k, d_ffn]


class Fused(ABC):
    """A module that holds the W_outs of several experts in one parameter.

    Args:
        module: the fused module.
        transposed: whether the parameter is `[experts, d_ffn, d_model]`; otherwise `[experts, d_model, d_ffn]`.
    """

    def __init__(self, module: nn.Module, transposed: bool) -> None:
        self.module, self.transposed = module, transposed

    @property
    def weight(self) -> nn.Parameter:
        """The parameter with the W_outs of all experts."""
        weight: nn.Parameter = getattr(self.module, W_OUT)
        return weight

    @property
    def experts(self) -> list[Expert]:
        """The experts whose neurons can be told apart."""
        return list(range(len(self.weight)))

    def stacked(self, expert: Expert) -> Tensor:
        """A view of one expert's W_out as `[1, d_ffn, d_model]`, or of several that count as one."""
        weight = self.weight.detach()
        part = weight[expert : expert + 1] if isinstance(expert, int) else weight
        return part if self.transposed else part.transpose(1, 2)

    def capture(self, pick: Pick, keep: Callable[[Any], None]) -> RemovableHandle:
        """Have each call hand on a record of the activations at some positions."""
        names = list(inspect.signature(self.module.forward).parameters)

        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(self.record(pick, **dict(zip(names, args, strict=False)), **kwargs))

        return self.module.register_forward_pre_hook(see, with_kwargs=True)

    @abstractmethod
    def record(self, pick: Pick, **given: Tensor) -> Any:
        """The activations at some positions, worked out from what the module is given."""

    @abstractmethod
    def recorded(self, record: Any, row: int, expert: Expert, d_ffn: int) -> Tensor:
        """One expert's activations in a record `[d_ffn]`."""

    def shifted(self, output: Tensor, added: Tensor) -> Tensor:
        """The module's output with a vector `[d_model]` added at every position."""
        return output + added

    def activations(self, expert: int, x: Tensor) -> Tensor:
        """What enters the W_out of an expert for inputs `[n, d_model]`: `[n, d_ffn]`."""
        gated = hasattr(self.module, "gate_up_proj")
        name = "gate_up_proj" if gated else "up_proj"
        weight, bias = getattr(self.module, name)[expert], getattr(self.module, f"{name}_bias", None)
        up = functional.linear(x, weight.T if self.transposed else weight, None if bias is None else bias[expert])
        module: Any = self.module
        if not gated:
            return module.act_fn(up)  # type: ignore[no-any-return]
        if hasattr(module, "_apply_gate"):
            return module._apply_gate(up)  # type: ignore[no-any-return]
        gate, up = up.chunk(2, dim=-1)
        return module.act_fn(gate) * up  # type: ignore[no-any-return]


class RoutedExperts(Fused):
    """The layout of transformers' experts interface: `forward(hidden_states, top_k_index, top_k_weights)`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, getattr(module, "is_transposed", False))

    def record(self, pick: Pick, **given: Tensor) -> Routed:
        x, experts, weights = (pick(given[name]) for name in ("hidden_states", "top_k_index", "top_k_weights"))
        return self.routed(experts, weights, lambda expert, row: x[row])

    def routed(self, experts: Tensor, weights: Tensor, inputs: Callable[[int, Tensor], Tensor]) -> Routed:
        """Run the chosen experts `[n, k]` on the inputs of some rows, and multiply with the routing weights `[n, k]`."""
        o = self.weight.new_zeros(*experts.shape, self.stacked(0).shape[1])
        for expert in sorted(set(experts.flatten().tolist()) & set(range(len(self.weight)))):
            row, place = torch.where(experts == expert)
            o[row, place] = (weights[row, place, None] * self.activations(expert, inputs(expert, row))).to(o.dtype)
        return Routed(experts, o.detach())

    def recorded(self, record: Routed, row: int, expert: Expert, d_ffn: int) -> Tensor:
        chosen = record.o[row][record.experts[row] == expert]
        return chosen.sum(0) if len(chosen) else record.o.new_zeros(()).expand(d_ffn)  # takes no memory


class DispatchedExperts(RoutedExperts):
    """Llama 4: every expert is given every position times its routing weight, `[experts · positions, d_model]`."""

    def __init__(self, module: nn.Module) -> None:
        Fused.__init__(self, module, transposed=True)

    def record(self, pick: Pick, **given: Tensor) -> Routed:
        x = torch.stack(
            [pick(part) for part in given["hidden_states"].reshape(len(self.weight), -1, self.stacked(0).shape[2])]
        )
        routed = (x != 0).any(-1).T.to(x.dtype)  # [n, experts]; the weight of the others is 0
        weights, experts = routed.topk(max(1, int(routed.sum(1).max())))
        return self.routed(experts, weights, lambda expert, row: x[expert, row])

    def shifted(self, output: Tensor, added: Tensor) -> Tensor:
        first, *others = output.reshape(len(self.weight), -1, len(added))  # the sum over experts is taken outside
        return torch.cat([first + added, *others])


class SharedExperts(Fused):
    """Inkling: several shared experts in one parameter, with a weight for each; they count as one with all their units."""

    @property
    def experts(self) -> list[Expert]:
        return ["shared"]

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, transposed=False)

    def record(self, pick: Pick, **given: Tensor) -> Tensor:
        module: Any = self.module
        x, weights = pick(given["hidden_states"]), pick(given["gammas"].flatten(0, -2))
        gate, up = (torch.einsum("nd,efd->nef", x, w) for w in (module.gate_proj, module.up_proj))
        o: Tensor = module.act_fn(gate) * up * weights[..., None]
        return o.detach().flatten(1)

    def recorded(self, record: Tensor, row: int, expert: Expert, d_ffn: int) -> Tensor:
        return record[row].clone()


LAYOUTS: dict[str, Callable[[nn.Module], Fused]] = {
    "Llama4TextExperts": DispatchedExperts,
    "InklingSharedExperts": SharedExperts,
}
"""Fused modules, by class, that do not follow transformers' experts interface."""


def fused_experts(layer: nn.Module) -> Iterator[tuple[str, Fused]]:
    """The fused experts of a decoder layer, with their paths in it.

    Raises:
        ModelError: if its experts are laid out in a way that is not known, or do not add to the residual stream.
    """
    for path, module in layer.named_modules():
        stacked = [name for name, parameter in module.named_parameters(recurse=False) if parameter.dim() == 3]
        if not stacked or "experts" not in path:
            continue
        given = list(inspect.signature(module.forward).parameters)
        layout = LAYOUTS.get(type(module).__name__)
        if layout is None and W_OUT in stacked and given[:3] == ["hidden_states", "top_k_index", "top_k_weights"]:
            layout = RoutedExperts
        if layout is None or getattr(module, "has_post_expert_norm", False):
            raise ModelError(
                "these experts cannot be edited neuron by neuron", where=path, got=type(module).__name__,
                expected="experts in one parameter `down_proj`, whose products go to the residual stream without a norm",
                do="update transformers, if a newer one is out; otherwise open an issue that names the model type",
            )  # fmt: skip
        yield path, layout(module)

"""Where a loaded model keeps its decoder layers, W_out, final norm, W_U and image positions.

One resolver works from facts that hold for the decoder-style image-text-to-text models of transformers; a family that
needs more is a row of `FAMILIES`. Nothing outside this module knows a module path or a weight's orientation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mmedit.errors import ModelError, RequestError
from mmedit.models.editable import ADAPTER, full_name, obstacle
from mmedit.neuron import Neuron, Site

W_OUT_NAMES = ("down_proj", "fc2", "wo", "w2", "dense_4h_to_h", "output.dense", "c_proj")
NOT_FEED_FORWARD = re.compile(r"attn|attention|mamba|conv|router|gate\b|altup|per_layer|experts")
NOT_TEXT = re.compile(r"vision|visual|image_|vq|audio|qformer")
NORM_NAMES = ("norm", "final_layer_norm", "final_layernorm", "embedding_norm", "norm_f", "ln_f", "layer_norm")
ACTIVATION_NAMES = ("act_fn", "activation_fn", "activation", "act", "hidden_act")


@dataclass(frozen=True)
class Family:
    """What the resolver must be told about a model type: a path from the model, or None to search."""

    layers: str | None = None
    unembedding: str | None = None


FAMILIES: dict[str, Family] = {}
"""Model types (config.model_type) that the generic search gets wrong."""


@dataclass(frozen=True, eq=False)
class WOut:
    """One second feed-forward matrix, seen as `[d_ffn, d_model]`: row i is neuron i's output vector."""

    site: Site
    module: nn.Module
    name: str  # of the weight in model.named_parameters()
    layer: nn.Module
    act_fn: nn.Module | None  # whose output is act(gate), before the up factor

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as the module stores it."""
        weight: nn.Parameter = self.module.weight  # type: ignore[assignment]
        return weight

    @property
    def matrix(self) -> Tensor:
        """The weight as `[d_ffn, d_model]`, a view."""
        return self.weight.detach() if isinstance(self.module, Conv1D) else self.weight.detach().T

    def rows(self, units: Tensor) -> Tensor:
        """Copies of rows `[k, d_model]`, in the weight's own type, on the CPU."""
        return self.matrix[units.to(self.weight.device)].cpu()

    def write(self, units: Tensor, rows: Tensor) -> None:
        """Put rows `[k, d_model]` in place; touches nothing else."""
        weight = self.weight
        self.matrix[units.to(weight.device)] = rows.to(weight.device, weight.dtype)

    @property
    def d_ffn(self) -> int:
        # the module's own word first: packed weights have other shapes
        return int(getattr(self.module, "in_features", None) or self.matrix.shape[0])

    @property
    def d_model(self) -> int:
        return int(getattr(self.module, "out_features", None) or self.matrix.shape[1])


class Architecture:
    """The facts that locating and editing need of a model.

    Args:
        model: an unmodified transformers model.

    Raises:
        ModelError: if its decoder layers, a W_out or the unembedding cannot be found, or a W_out cannot be edited
            because it is quantised or offloaded.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = getattr(model, "config", None)
        if config is None:
            raise ModelError(
                "not a transformers model",
                got=type(model).__name__,
                expected="a PreTrainedModel or a VisionLanguageModel",
            )
        self.model_type: str = config.model_type
        family = FAMILIES.get(self.model_type, Family())
        self.layers = model.get_submodule(family.layers) if family.layers else _find_layers(model)
        self.unembedding: nn.Module = (
            model.get_submodule(family.unembedding) if family.unembedding else _find_unembedding(model)
        )
        self.final_norm = _find_final_norm(model, self.layers)
        self.seen_as: WeakSet[nn.Module] = WeakSet([model])  # the model, and wrappers of torch.compile around it
        parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.w_outs = {w_out.site: w_out for w_out in _find_w_outs(self.layers, parameter_names)}
        if not self.w_outs:
            raise ModelError(
                "no feed-forward W_out found",
                where=f"{type(model).__name__} ({self.model_type})",
                expected=f"a Linear named {', '.join(W_OUT_NAMES)} in each decoder layer",
            )
        names = {module: name for name, module in model.named_modules()}
        self._paths = {site: names[w_out.module] for site, w_out in self.w_outs.items()}
        self.n_layers = len(self.layers)  # type: ignore[arg-type]
        first = next(iter(self.w_outs.values()))
        self.d_model, self.d_ffn = first.d_model, first.d_ffn
        self.direct: dict[Site, bool | None] = {}  # whether W_out adds to the residual as it is, by models/probe.py
        self.image_token_id: int | None = getattr(config, "image_token_id", None)
        if self.image_token_id is None:
            self.image_token_id = getattr(config, "image_token_index", None)

    @property
    def w_u(self) -> Tensor:
        """The unembedding as `[n_vocab, d_model]`; row t is the direction that writes token t."""
        weight: Tensor = self.unembedding.weight  # type: ignore[assignment]
        return weight.detach()

    def w_out(self, site: Site) -> WOut:
        """The W_out of a site.

        Raises:
            RequestError: if the model has no such site.
        """
        if site not in self.w_outs:
            raise RequestError("the model has no such feed-forward layer", got=str(site), expected=self.site_range)
        return self.w_outs[site]

    @property
    def site_range(self) -> str:
        """The sites in words, for messages."""
        sites = sorted(self.w_outs)
        return f"{sites[0]} to {sites[-1]}"

    def check(self, neuron: Neuron) -> None:
        """Raise RequestError unless the model has this neuron."""
        d_ffn = self.w_out(neuron.site).d_ffn
        if neuron.unit >= d_ffn:
            raise RequestError("the layer has no such unit", got=str(neuron), expected=f"unit 0 to {d_ffn - 1}")

    def sites_of(self, layers: list[int] | tuple[int, ...] | None) -> list[Site]:
        """The sites of some decoder layers, or of all.

        Args:
            layers: layer numbers from 0, or None for every layer.

        Raises:
            RequestError: if a layer does not exist or has no W_out.
        """
        if layers is None:
            return sorted(self.w_outs)
        with_w_out = {site.layer for site in self.w_outs}
        wrong = [layer for layer in layers if layer not in with_w_out]
        if wrong or not layers:
            raise RequestError(
                "no such decoder layer",
                got=list(layers),
                expected=f"layers from {min(with_w_out)} to {max(with_w_out)}",
            )
        return [site for site in sorted(self.w_outs) if site.layer in set(layers)]

    def require_editable(self, site: Site) -> WOut:
        """The W_out of a site, if its rows can be changed in place.

        Raises:
            ModelError: if the weight is quantised, offloaded, or compiled with freezing.
        """
        w_out = self.w_out(site)
        found = obstacle(w_out.module, self._paths[site], self.seen_as)
        if found:
            raise ModelError(
                f"the W_out of {site} is {found[0]} and cannot be edited in place", where=w_out.name,
                expected="float32, bfloat16 or float16 on a device", do=found[1],
            )  # fmt: skip
        return w_out


_known: WeakKeyDictionary[nn.Module, Architecture] = WeakKeyDictionary()


def architecture_of(model: Any) -> Architecture:
    """The architecture of a VisionLanguageModel or of a bare transformers model, worked out once per model.

    Raises:
        ModelError: if it cannot be worked out.
    """
    inner = bare_model(model)
    if inner not in _known:
        _known[inner] = Architecture(inner)
    _known[inner].seen_as.add(model if isinstance(model, nn.Module) else model.model)
    return _known[inner]


def bare_model(model: Any) -> nn.Module:
    """The transformers model inside a VisionLanguageModel or a wrapper of torch.compile, or the model itself."""
    inner = model.model if hasattr(model, "processor") and hasattr(model, "inputs") else model
    if not isinstance(inner, nn.Module):
        raise ModelError(
            "not a model", got=type(model).__name__, expected="a VisionLanguageModel or a transformers model"
        )
    return getattr(inner, "_orig_mod", inner)


def _w_out_modules(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The feed-forward output projections of one decoder layer, by name."""
    for name, module in layer.named_modules():
        if any(name == known or name.endswith("." + known) for known in W_OUT_NAMES) and not NOT_FEED_FORWARD.search(
            name
        ):
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 2:
                yield name, module


def _find_layers(model: nn.Module) -> nn.ModuleList:
    """The shallowest list of layers that hold a W_out, searched from the text decoder and never from the model's root."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    ignored = re.compile(NOT_TEXT.pattern + (r"|(^|\.)encoder\." if hasattr(decoder, "decoder") else ""))
    lists = sorted(
        (
            (name, module)
            for name, module in decoder.named_modules()
            if isinstance(module, nn.ModuleList) and not ignored.search(name)
        ),
        key=lambda item: item[0].count("."),
    )
    for _, module in lists:
        if any(True for layer in module for _ in _w_out_modules(layer)):
            return module
    for name, module in decoder.named_modules():
        readable = isinstance(getattr(module, "weight", None), Tensor)  # GPTQ, AWQ and torch.ao pack it elsewhere
        if not readable and name.endswith(W_OUT_NAMES) and not NOT_FEED_FORWARD.search(name):
            raise ModelError(
                "the W_outs are quantised and cannot be read or edited", where=name, got=full_name(module),
                expected="a Linear with a weight", do=ADAPTER,
            )  # fmt: skip
    raise ModelError(
        "no decoder layers found", where=type(model).__name__, do="open an issue that names the model type"
    )


def _find_unembedding(model: nn.Module) -> nn.Module:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if head is None:
        raise ModelError(
            "no unembedding found", where=type(model).__name__, expected="get_output_embeddings() gives a module"
        )
    return head  # type: ignore[no-any-return]


def _find_final_norm(model: nn.Module, layers: nn.Module) -> nn.Module | None:
    """The norm that stands beside the list of layers."""
    for module in model.modules():
        if layers in module.children():
            return next((child for name in NORM_NAMES if (child := getattr(module, name, None)) is not None), None)
    return None


def _find_w_outs(layers: nn.Module, parameter_names: dict[int, str]) -> Iterator[WOut]:
    for index, layer in enumerate(layers.children()):
        found = list(_w_out_modules(layer))
        dense = [item for item in found if "shared" not in item[0]]
        for expert, (name, module) in [(None, item) for item in dense[:1]] + [
            ("shared", item) for item in found if "shared" in item[0]
        ]:
            parent = layer.get_submodule(name.rpartition(".")[0])
            act_fn = next(
                (child for key in ACTIVATION_NAMES if isinstance(child := getattr(parent, key, None), nn.Module)), None
            )
            weight_name = parameter_names.get(id(module.weight), f"decoder layer {index}: {name}.weight")
            yield WOut(Site(index, expert), module, weight_name, layer, act_fn)  # type: ignore[arg-type]

"""Finding a model's parts by facts that hold for the image-text-to-text models of transformers (5.0 and later)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn

from mmedit.errors import ModelError
from mmedit.models.editable import ADAPTER, full_name
from mmedit.models.experts import Fused, fused_experts
from mmedit.models.w_out import WOut
from mmedit.neuron import Expert, Site

W_OUT_NAMES = ("down_proj", "fc2", "wo", "w2", "dense_4h_to_h", "output.dense", "c_proj")
NOT_FEED_FORWARD = re.compile(r"attn|attention|mamba|conv|router|gate\b|altup|per_layer|(^|\.)experts\b")
NOT_TEXT = re.compile(r"vision|visual|image_|vq|audio|qformer")
NORM_NAMES = ("norm", "final_layer_norm", "final_layernorm", "embedding_norm", "norm_f", "ln_f", "layer_norm")
SHARED_GATE = "shared_expert_gate"  # whose sigmoid stands before what a shared expert writes, in Qwen's mixtures
ACTIVATION_NAMES = ("act_fn", "activation_fn", "activation", "act", "hidden_act")


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The shallowest list of layers that hold a W_out, searched from the text decoder and never from the model's root.

    Raises:
        ModelError: if there is none, or its W_outs are packed by a quantiser.
    """
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
        if any(True for layer in module for _ in (*_w_out_modules(layer), *_text_experts(layer))):
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


def find_unembedding(model: nn.Module) -> nn.Module:
    """The output embeddings of the model, or of the shallowest module in it that has some.

    Raises:
        ModelError: if there are none.
    """
    for _, module in sorted(model.named_modules(), key=lambda item: item[0].count(".") + bool(item[0])):
        head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
        if isinstance(head, nn.Module) and isinstance(getattr(head, "weight", None), Tensor):
            return head
    raise ModelError(
        "no unembedding found", where=type(model).__name__, expected="get_output_embeddings() gives a module"
    )


def find_final_norm(model: nn.Module, layers: nn.Module) -> nn.Module | None:
    """The norm that stands beside the list of layers."""
    for module in model.modules():
        if layers in module.children():
            return next((child for name in NORM_NAMES if (child := getattr(module, name, None)) is not None), None)
    return None


def find_w_outs(model: nn.Module, layers: nn.Module) -> Iterator[WOut]:
    """Every W_out of the decoder layers: dense ones, experts' and shared experts'.

    Raises:
        ModelError: if a layer has several that cannot be told apart, or experts of an unknown layout.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    paths = {module: name for name, module in model.named_modules()}
    for index, layer in enumerate(layers.children()):
        seen: dict[Expert, str] = {}
        for w_out in (*_dense(index, layer, names, paths), *_of_experts(index, layer, names, paths)):
            if w_out.expert in seen:
                raise ModelError(
                    "a decoder layer with several W_outs that are not experts", where=type(model).__name__,
                    got=f"{seen[w_out.expert]} and {w_out.path}", do="open an issue that names the model type",
                )  # fmt: skip
            seen[w_out.expert] = w_out.path
            yield w_out


def _dense(index: int, layer: nn.Module, names: dict[int, str], paths: dict[nn.Module, str]) -> Iterator[WOut]:
    for name, module in _w_out_modules(layer):
        parent = layer.get_submodule(name.rpartition(".")[0])
        act_fn = next((c for key in ACTIVATION_NAMES if isinstance(c := getattr(parent, key, None), nn.Module)), None)
        weight = names.get(id(module.weight), f"decoder layer {index}: {name}.weight")
        around = layer.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
        shared, gate = "share" in name, getattr(around, SHARED_GATE, None)
        yield WOut(
            Site(index, "shared" if shared else None), module, weight, paths[module], act_fn, gate if shared else None
        )


def _of_experts(index: int, layer: nn.Module, names: dict[int, str], paths: dict[nn.Module, str]) -> Iterator[WOut]:
    for _, fused in _text_experts(layer):
        for expert in fused.experts:
            yield WOut(Site(index, expert), fused.module, names[id(fused.weight)], paths[fused.module], fused=fused)


def _w_out_modules(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The feed-forward output projections of one decoder layer, by name."""
    for name, module in layer.named_modules():
        known = any(name == ending or name.endswith("." + ending) for ending in W_OUT_NAMES)
        if known and not NOT_FEED_FORWARD.search(name) and not NOT_TEXT.search(name):
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 2:
                yield name, module


def _text_experts(layer: nn.Module) -> Iterator[tuple[str, Fused]]:
    """The experts that words go to; those that only a picture's positions go to write no word."""
    return ((name, fused) for name, fused in fused_experts(layer) if not NOT_TEXT.search(name))

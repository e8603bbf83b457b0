"""Whether a weight can be edited in place: not if it is quantised, sharded, offloaded, replaced, or frozen.

A model under `torch.compile` reads its weights when it runs, so edits in place are seen. The exception is inductor's
*freezing*, which makes constants of the weights and may copy them. It is known by what `torch.compile` was told and by
the flag `torch._inductor.config.freezing`; a flag that was set only while the graph was made leaves no trace.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

EDITABLE = (torch.float32, torch.bfloat16, torch.float16)
ADAPTER = "edit the plain model and use the edit as a PEFT adapter (patch.to_lora)"


def obstacle(weight: Any, module: nn.Module, path: str, models: Iterable[nn.Module]) -> tuple[str, str] | None:
    """What keeps a weight from being edited in place, and what to do about it; None if nothing does.

    Args:
        weight: the parameter.
        module: whose it is.
        path: where the module was found in the model.
        models: the model, and the wrappers of torch.compile through which it is known.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> obstacle(layer.weight, layer, "0", [nn.Sequential(layer)])
        >>> obstacle(layer.to("meta").weight, layer, "0", [nn.Sequential(layer)])[0]
        'offloaded'
    """
    if weight.is_meta:
        return "offloaded", f"load with another device_map, or {ADAPTER}"
    if type(weight) not in (nn.Parameter, Tensor) or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return f"quantised or sharded ({type(weight).__name__} of {weight.dtype})", ADAPTER
    if weight.dtype not in EDITABLE or not weight.numel():
        return f"{weight.dtype} {list(weight.shape)}", "load with another dtype, on one process"
    for model in models:
        parts = list(_along(model, path))
        if module not in parts[-1].modules():
            return f"replaced by a {full_name(parts[-1])}", f"{ADAPTER}, or load the model again"
        if any(map(_is_frozen, parts)):
            return "part of a graph compiled with freezing", f"compile without freezing, or {ADAPTER}"
    return None


def full_name(module: nn.Module) -> str:
    """The class of a module with where it comes from: many packages have a Linear."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _along(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules from a model down to a path, as far as it goes."""
    part: Any = model
    yield part
    for name in path.split("."):
        part = getattr(part, name, None)
        if not isinstance(part, nn.Module):
            return
        yield part


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module was compiled by inductor with freezing, by any of the ways to compile one."""
    always = getattr(sys.modules.get("torch._inductor.config"), "freezing", False)
    ways = (module, *(getattr(module, name, None) for name in ("_compiled_call_impl", "_compiled_call", "forward")))
    asked = (getattr(way, "get_compiler_config", None) for way in ways)
    configs = (config() for config in asked if callable(config))  # None where the compiler is not inductor
    return any(config is not None and (always or config.get("freezing")) for config in configs)

"""Whether a weight can be edited in place: not if it is quantised, sharded, offloaded, replaced, or frozen.

A model under `torch.compile` reads its weights when it runs, so edits in place are seen. The exception is inductor's
*freezing*, which makes constants of the weights and may copy them. It is known by what `torch.compile` was told and by
the flag `torch._inductor.config.freezing`; a flag that was set only while the graph was made leaves no trace.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

EDITABLE = (torch.float32, torch.bfloat16, torch.float16)
ADAPTER = "edit the plain model and use the edit as a PEFT adapter (patch.to_lora)"


class Walk:
    """A model looked through from the top: no module is looked at twice.

    Args:
        model: the model, or a wrapper of torch.compile through which it is known.
    """

    def __init__(self, model: nn.Module) -> None:
        self._found = {"": (model, _is_frozen(model))}

    def to(self, path: str) -> tuple[nn.Module, bool]:
        """The module at a path, or the last on the way there; and whether one on the way is part of a frozen graph."""
        if path not in self._found:
            above, _, name = path.rpartition(".")
            module, frozen = self.to(above)
            wrapped = module._modules.get("_orig_mod")  # by torch.compile
            part = getattr(module, name, None)
            frozen = frozen or any(_is_frozen(each) for each in (wrapped, part) if isinstance(each, nn.Module))
            module = part if isinstance(part, nn.Module) else module
            self._found[path] = module, frozen
        return self._found[path]


def obstacle(weight: Any, module: nn.Module, path: str, walks: Iterable[Walk]) -> tuple[str, str] | None:
    """What keeps a weight from being edited in place, and what to do about it; None if nothing does.

    Args:
        weight: the parameter.
        module: whose it is.
        path: where the module was found in the model.
        walks: through the model, and through the wrappers of torch.compile through which it is known.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> obstacle(layer.weight, layer, "0", [Walk(nn.Sequential(layer))])
        >>> obstacle(layer.to("meta").weight, layer, "0", [Walk(nn.Sequential(layer))])[0]
        'offloaded'
    """
    if weight.is_meta:
        return "offloaded", f"load with another device_map, or {ADAPTER}"
    if type(weight) not in (nn.Parameter, Tensor) or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return f"quantised or sharded ({type(weight).__name__} of {weight.dtype})", ADAPTER
    if weight.dtype not in EDITABLE or not weight.numel():
        return f"{weight.dtype} {list(weight.shape)}", "load with another dtype, on one process"
    for walk in walks:
        found, frozen = walk.to(path)
        if module is not found and module not in found.modules():
            return f"replaced by a {full_name(found)}", f"{ADAPTER}, or load the model again"
        if frozen:
            return "part of a graph compiled with freezing", f"compile without freezing, or {ADAPTER}"
    return None


def full_name(module: nn.Module) -> str:
    """The class of a module with where it comes from: many packages have a Linear."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module was compiled by inductor with freezing, by any of the ways to compile one."""
    own = vars(module)  # an attribute that a module lacks takes it long to look for
    ways = [own.get("_compiled_call_impl"), own.get("_compiled_call"), own.get("forward", type(module).forward)]
    if "get_compiler_config" in own:
        ways.append(module)
    for way in ways:
        config = way.get_compiler_config() if hasattr(way, "get_compiler_config") else None
        if config is not None:  # the compiler is inductor
            always = getattr(sys.modules.get("torch._inductor.config"), "freezing", False)
            if always or config.get("freezing"):
                return True
    return False

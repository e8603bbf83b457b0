"""Does an adapter do what its patch does? PEFT loads one whose keys fit nothing with a mere warning, and then it is a no-op.

All is tried on a twin: a copy of the model that shares every weight with it but the edited ones, so that a check costs
little memory and the model itself is never touched.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmedit.errors import ModelError, PatchError
from mmedit.models.architecture import Architecture, WOut, architecture_of, bare_model
from mmedit.patches.live import Stack
from mmedit.patches.patch import Patch

ROUNDINGS = 32  # in units of the model's type, how far the logits of an adapter that is not merged may lie off


def check_adapter(patch: Patch, folder: Path, vlm: Any) -> tuple[float, float]:
    """Load an adapter through PEFT and compare it with its patch; the model is left alone.

    Args:
        patch: what the adapter was made from.
        folder: of the adapter.
        vlm: the patch's base.

    Returns:
        How far the patch moves the logits of a short text, at most, and how far off the adapter's are.

    Raises:
        PatchError: if the merged weights or the logits of the live adapter are not the patch's.
        ModelError: if the text decoder cannot be run alone.
    """
    from peft import PeftModel

    twin = _twin(vlm, patch)
    architecture = architecture_of(twin)
    before = _logits(twin, architecture)
    with patch.applied(twin):
        wanted = _logits(twin, architecture)
        rows = {site: architecture.w_out(site).rows(patch.units(site)) for site in patch.sites}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # what PEFT only warns of is an error below
        adapter = PeftModel.from_pretrained(twin, str(folder))
        got = _logits(twin, architecture)
        adapter.merge_and_unload()
    for site, edited in rows.items():
        w_out = architecture.w_out(site)
        _compare(w_out, patch, edited, Stack.of(vlm).base_rows(site, torch.arange(w_out.d_ffn)))
    moved, off = float((wanted - before).abs().max()), float((wanted - got).abs().max())
    allowed = ROUNDINGS * torch.finfo(w_out.weight.dtype).eps * float(wanted.abs().max())
    if not off <= allowed:
        raise _useless("its logits are not the patch's", f"logits off by {off:.3g}", f"at most {allowed:.3g}")
    return moved, off


def _compare(w_out: WOut, patch: Patch, edited: Tensor, base: Tensor) -> None:
    """Raise unless a merged W_out is its base with the patch's rows: exactly, or for a low-rank site to rounding."""
    wanted, merged = base.clone(), w_out.matrix.cpu()
    wanted[patch.units(w_out.site)] = edited
    slack = 4 * torch.finfo(base.dtype).eps * float(wanted.abs().max()) if w_out.site in patch.low_rank else 0.0
    off = float((merged.float() - wanted.float()).abs().max())
    if not off <= slack:
        state = "unchanged: a silent no-op" if torch.equal(merged, base) else f"off by up to {off:.3g}"
        raise _useless("it does not change the weights as the patch does", f"{w_out.site} {state}", "the patch's rows")


def _useless(what: str, got: str, expected: str) -> PatchError:
    return PatchError(
        f"the adapter is of no use and was not kept: {what}", got=got, expected=expected,
        do="report this with the model's type and the versions of peft and transformers",
    )  # fmt: skip


def _twin(vlm: Any, patch: Patch) -> Any:
    """A copy of a model that shares all weights but the edited W_outs, which are unpatched copies."""
    model, stack = bare_model(vlm), Stack.of(vlm)
    edited = {id(architecture_of(model).w_out(site).weight) for site in patch.sites}
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for weight in model.parameters():
        data = weight.detach()
        memo[id(weight)] = nn.Parameter(data.clone() if id(weight) in edited else data, requires_grad=False)
    twin = copy.deepcopy(model, memo).eval()
    for site in patch.sites:
        units = torch.arange(architecture_of(twin).w_out(site).d_ffn)
        architecture_of(twin).w_out(site).write(units, stack.base_rows(site, units))
    return twin


@torch.no_grad()
def _logits(model: nn.Module, architecture: Architecture) -> Tensor:
    """Logits `[16, n_vocab]` of sixteen tokens from all over the vocabulary, by the text decoder alone."""
    owners = [module for module in model.modules() if any(child is architecture.layers for child in module.modules())]
    decoder = next((m for m in reversed(owners) if "input_ids" in inspect.signature(m.forward).parameters), model)
    ids = torch.linspace(0, len(architecture.w_u) - 1, 16).long()[None].to(architecture.w_u.device)
    try:
        output: Any = decoder(input_ids=ids)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            "cannot run this model's text decoder, so an adapter for it cannot be checked",
            where=type(decoder).__name__,
            got=f"{type(error).__name__}: {error}"[:200],
        ) from error
    logits: Tensor = output.logits if "logits" in output else architecture.unembedding(output[0])
    return logits[0].float()

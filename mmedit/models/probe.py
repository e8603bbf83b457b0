"""Where does what W_out writes go? The contribution score takes it for granted that it is added to the residual stream.

In some families a norm or a scale stands in between, or a softcap behind W_U, so every model is asked, on a few tokens: by
running each layer again with a vector added to one of its W_outs, and by comparing the logits with W_U's products.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmedit.models.architecture import Architecture
from mmedit.models.devices import input_device
from mmedit.models.readout import Head, Route
from mmedit.models.replay import Replay, hidden_of, rounding
from mmedit.models.w_out import WOut

NOT_RUN = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError)
SOFTCAP = "final_logit_softcapping"  # its name in configurations


def probe(model: Any, architecture: Architecture, inputs: Mapping[str, Any] | None = None) -> None:
    """Find out how what W_outs write moves the logits, and note it in the architecture.

    Afterwards `architecture.routes` holds for each site its `Route`, or None where it takes a way of another kind, and
    `architecture.head` is the `Head`, or None. If the model does not run on the inputs, nothing is noted.

    Args:
        model: a transformers model.
        architecture: its architecture.
        inputs: what to run it on; four tokens of text when None.

    Example:
        >>> import mmedit
        >>> vlm = mmedit.load("iconworld-llava")
        >>> set(vlm.architecture.routes.values()), vlm.architecture.head
        ({Route(scale=1.0, norm=None)}, Head(scale=1.0, softcap=None))
    """
    layers = list(architecture.layers.children())
    with torch.inference_mode():
        run = _Run(model, architecture, inputs)
        if len(run.calls) < len(layers):
            return
        architecture.head = _head(model, architecture, run)
        w_outs = {w_out.module: w_out for w_out in architecture.sites}  # experts share a module
        onward = 1.0 if run.reaches_final_norm else None  # what all later layers together multiply a writing with
        routes: dict[nn.Module, Route | None] = {}
        for layer in reversed(layers):
            inner = set(layer.modules())
            here = [w_out for w_out in w_outs.values() if w_out.module in inner]
            try:
                replay = Replay(layer, run.calls[layer], here)
                routes |= {w_out.module: None if onward is None else _route(replay, w_out, onward) for w_out in here}
                kept = replay.scale(None)
            except NOT_RUN:
                kept = None
            onward = None if onward is None or kept is None else onward * kept
        architecture.routes = {w_out.site: routes.get(w_out.module) for w_out in architecture.sites}


class _Run:
    """What is seen while the model runs: calls of the layers, the final norm, and logits."""

    def __init__(self, model: Any, architecture: Architecture, inputs: Mapping[str, Any] | None) -> None:
        self.calls: dict[nn.Module, tuple[Any, Any, Tensor]] = {}
        self.normed: tuple[Tensor, Tensor] | None = None
        self.logits: Tensor | None = None
        ids = [token for token in range(5, 10) if token != architecture.image_token_id][:4]
        text = {"input_ids": torch.tensor([ids], device=input_device(model))}
        heads = (module for module in model.modules() if _unembedding(module) is architecture.unembedding)
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
        hooked = [layer.register_forward_hook(self._keep, with_kwargs=True) for layer in architecture.layers.children()]
        if architecture.final_norm is not None:
            hooked.append(architecture.final_norm.register_forward_hook(self._keep_norm))
        try:
            for module in (model,) if inputs else dict.fromkeys((model, *heads, decoder)):
                if self._runs(module, inputs or text, text["input_ids"]):
                    break
        finally:
            for handle in hooked:
                handle.remove()

    def _runs(self, module: Any, inputs: Mapping[str, Any], ids: Tensor) -> bool:
        """Whether a module runs on inputs; if not, nothing is kept."""
        takes = inspect.signature(module.forward).parameters
        answer = {"decoder_input_ids": ids} if "decoder_input_ids" in takes and module.config.is_encoder_decoder else {}
        try:
            self.logits = getattr(module(**inputs, **answer, use_cache=False), "logits", None)
        except NOT_RUN:  # it needs more than this
            self.calls.clear()
            return False
        return True

    def _keep(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.calls[module] = args, kwargs, hidden_of(output)

    def _keep_norm(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.normed = args[0], output

    @property
    def reaches_final_norm(self) -> bool:
        """Whether what the last layer gives is what the final norm is given."""
        last = list(self.calls.values())[-1][2]
        return self.normed is not None and _same(last, self.normed[0])


def _route(replay: Replay, w_out: WOut, onward: float) -> Route | None:
    """The way of one W_out: straight, or through one norm of its layer."""
    scale = replay.scale(w_out)
    if scale is not None:
        return Route(scale * onward)
    for norm in replay.norms:
        before = replay.scale(w_out, norm)
        after = None if before is None else replay.scale(norm)
        if before is not None and after is not None:
            return Route(before * after * onward, norm)
    return None


def _head(model: Any, architecture: Architecture, run: _Run) -> Head | None:
    """How the logits come from W_U's products, if by a scale or a softcap."""
    unembedding: Any = architecture.unembedding
    if run.normed is None or run.logits is None or unembedding.weight.is_meta:  # the last is offloaded
        return None
    logits = run.logits[0].float()
    normed = run.normed[1][0, -len(logits) :].to(unembedding.weight)
    u = nn.functional.linear(normed, unembedding.weight, getattr(unembedding, "bias", None)).float()
    n = min(u.shape[-1], logits.shape[-1])  # some keep rows of W_U to themselves
    u, logits = u[:, :n].to(logits.device), logits[:, :n]
    shown = logits > torch.finfo(run.logits.dtype).min / 2  # some mask tokens that are not for saying
    softcap = getattr(model.config.get_text_config(decoder=True), SOFTCAP, None)
    for cap in (softcap, None) if softcap else (None,):  # small logits fit either
        x = logits if cap is None else cap * torch.atanh((logits / cap).clamp(-0.999, 0.999))
        scale = float((x * u)[shown].sum() / u[shown].square().sum())
        head = Head(1.0 if abs(scale - 1) < rounding(run.logits.dtype) else scale, cap)
        if _same(head.logits(u)[shown], logits[shown]):
            return head
    return None


def _unembedding(module: Any) -> Any:
    return module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same to rounding."""
    off = float((a.float() - b.float().to(a.device)).norm()) if a.shape == b.shape else float("inf")
    return off <= rounding(b.dtype) * float(b.float().norm())

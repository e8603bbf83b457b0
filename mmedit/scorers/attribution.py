"""Mmns (Schwettmann et al., 2023, arXiv 2308.01544): activation times gradient at the image positions.

The attribution of neuron k at image position p to the logit c of a word's token is o[p,k] · ∂c/∂o[p,k], and the score of
the neuron is its maximum over p. The gradients come from the real model: one forward pass over the prompt and the model's
own caption, and one backward pass for each word. For a gated FFN it makes no difference whether o or act(gate) is the
activation: the up factor that is gained in one of the two factors is lost in the other.

A neuron of the last layer has no influence on other positions than its own, so its attribution is 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from mmedit.errors import ModelError, RequestError
from mmedit.models.architecture import Architecture, WOut, bare_model
from mmedit.models.experts import Routed
from mmedit.models.forcing import with_answers
from mmedit.models.gradients import without_gradients_of_weights
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Site
from mmedit.scorers.base import Scorer
from mmedit.sightings import Sighting


class Attribution(Scorer):
    """How much each neuron's activity on the picture moves the word's logit, to first order (Schwettmann et al., 2023)."""

    name = "attribution"

    def scores(self, vlm: VisionLanguageModel, seen: Sequence[Sighting]) -> dict[Site, Tensor]:
        found: list[dict[Site, Tensor]] = []
        for _, words in groupby(seen, key=lambda sighting: id(sighting.generation)):
            found += attributions(vlm, list(words))
        return {site: torch.stack([maxima[site] for maxima in found]) for site in seen[0].activations}

    def options(self, architecture: Architecture, **options: Any) -> dict[str, Any]:
        if architecture.image_token_id is None:
            raise ModelError(
                "attribution looks at image positions, and this model has none in its prompt",
                got=f"model_type {architecture.model_type!r}, whose configuration has no image_token_id",
                do="use scorer='contribution', which needs no image positions",
            )
        return super().options(architecture, **options)


def attributions(vlm: VisionLanguageModel, words: Sequence[Sighting]) -> list[dict[Site, Tensor]]:
    """Attributions of all neurons to words of one caption.

    Args:
        vlm: the model; its weights, their `requires_grad` and its hooks are the same afterwards.
        words: sightings in one caption.

    Returns:
        For each word and site the greatest activation × gradient over the image positions, `[d_ffn]` in float32 on the CPU.

    Raises:
        RequestError: if there is no picture in the prompt.
        ModelError: if the decoder does not see the picture as positions of the prompt.
    """
    model: Any = bare_model(vlm.model)
    last = max(word.occurrence.index for word in words)
    with without_gradients_of_weights(model):
        prompt = vlm.inputs(words[0].image, words[0].prompt)
        if vlm.has_encoder or "cross_attention_mask" in prompt:
            raise ModelError(
                "attribution looks at the picture's positions in the decoder, which sees this model's pictures through cross-attention",
                where=vlm.architecture.model_type, do="use another scorer",
            )  # fmt: skip
        answer = prompt["input_ids"].new_tensor([words[0].generation.ids[:last]], dtype=torch.long)
        inputs = with_answers(prompt, answer, torch.ones_like(answer), vlm.architecture.model_type)
        at_image = inputs["input_ids"][0] == vlm.architecture.image_token_id
        if not at_image.any():
            raise RequestError("attribution looks at image positions", got="a prompt without a picture")
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            inputs["logits_to_keep"] = last + 1  # those that predict the caption
        found = []
        with _Watch(vlm.architecture, list(words[0].activations), at_image) as watch:
            logits = model(**inputs, use_cache=False).logits[0, -1 - last :]
            for number, word in enumerate(words, 1):
                logit = logits[word.occurrence.index, word.occurrence.token_id]
                torch.autograd.grad(logit, watch.roots, retain_graph=number < len(words))
                found.append(dict(watch.maxima))
    return found


class _Watch:
    """Hooks on W_outs that reduce each gradient to its maxima as it comes by, so that no gradient is kept.

    Args:
        architecture: of the model that will run.
        sites: which W_outs.
        at_image: for each position of the prompt and the caption, whether it is the picture's.
    """

    def __init__(self, architecture: Architecture, sites: Sequence[Site], at_image: Tensor) -> None:
        self.at_image, self.first_layer = at_image, min(site.layer for site in sites)
        self.sharing: dict[nn.Module, list[WOut]] = {}  # the experts of a layer are in one module
        for site in sites:
            w_out = architecture.w_out(site)
            self.sharing.setdefault(w_out.module, []).append(w_out)
        self.roots: list[Tensor] = []  # where the graph begins: nothing before the first of the sites needs a gradient
        self.records: dict[nn.Module, Any] = {}
        self.maxima: dict[Site, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _Watch:
        try:
            for module, w_outs in self.sharing.items():
                if w_outs[0].fused:
                    self._handles.append(w_outs[0].capture(self._of_picture, partial(self.records.__setitem__, module)))
                    self._handles.append(module.register_forward_hook(self._see_experts))
                else:
                    self._handles.append(module.register_forward_pre_hook(self._see))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()

    def _see(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Take the gradient with respect to what enters a W_out."""
        (w_out,) = self.sharing[module]
        o = self._begun(w_out, args[0])
        activation = self._of_picture(o.detach())
        o.register_hook(lambda slope: self._keep(w_out, activation, self._of_picture(slope)))  # type: ignore[no-untyped-call]
        return (o, *args[1:])

    def _see_experts(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """What enters an expert's W_out is a number of no tensor: go through what its neurons write."""
        w_outs, record = self.sharing[module], self.records.pop(module)
        y = self._begun(w_outs[0], output)

        def back(slope: Tensor) -> None:
            parts = slope.reshape(-1, len(self.at_image), slope.shape[-1])  # of Llama 4 one for each expert
            for w_out in w_outs:
                part = parts[w_out.expert if len(parts) > 1 else 0]  # type: ignore[index]
                self._keep(w_out, _expert(record, w_out), self._of_picture(part) @ w_out.matrix.T)

        y.register_hook(back)  # type: ignore[no-untyped-call]
        return y

    def _begun(self, w_out: WOut, values: Tensor) -> Tensor:
        """Values that the graph goes through; in the first layer it begins with them."""
        if w_out.layer == self.first_layer:
            values = values.detach().requires_grad_()
            self.roots.append(values)
        return values

    def _of_picture(self, values: Tensor) -> Tensor:
        """`[n_image_positions, n]`; some layers see all positions flattened, and there is a single prompt here."""
        rows = values.reshape(-1, values.shape[-1])
        if len(rows) != len(self.at_image):
            raise ModelError(
                "attribution needs one position of the decoder for each token of the prompt, and these layers have others",
                got=f"{len(rows)} positions", expected=f"{len(self.at_image)}", do="choose other layers, or another scorer",
            )  # fmt: skip
        return rows[self.at_image.to(values.device)]

    def _keep(self, w_out: WOut, activation: Tensor, slope: Tensor) -> None:
        self.maxima[w_out.site] = (activation.float() * slope.float()).amax(0).cpu()


def _expert(record: Any, w_out: WOut) -> Tensor:
    """An expert's activations at all recorded positions `[n, d_ffn]`; 0 where it is not routed to."""
    o: Tensor = record.detach() if isinstance(record, Tensor) else record.o
    if isinstance(record, Routed):
        chosen: Tensor = record.experts == w_out.expert  # type: ignore[assignment]
        o = (o * chosen[..., None]).sum(1)
    return o

"""A background: what a model says about things that an edit is not about, and how active its neurons are meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmedit.concepts import occurrences
from mmedit.models.finite import not_finite
from mmedit.models.vlm import VisionLanguageModel, batches
from mmedit.neuron import Neuron, Site
from mmedit.requests import Prompt
from mmedit.rewrites import Rewrite
from mmedit.trace import Trace


class Background:
    """A model's own answers about pictures and to questions without one, with the activations at each of their tokens.

    Args:
        vlm: the model, as it is now.
        images: pictures.
        prompt: put to each picture; the paper's caption prompt when None.
        questions: prompts without a picture.
        batch_size: pictures per batch.

    Raises:
        ImageError: if a picture cannot be read.
        ModelError: if the model computes NaN or infinity about one; nothing may be learned from that.

    Example:
        >>> import mmedit
        >>> background = Background(mmedit.load("iconworld-llava"), drawn_pictures(4))
        >>> everywhere = background.outside([])
        >>> background.activations([mmedit.Neuron(5, 7)], everywhere).shape == (len(everywhere), 1)
        True
    """

    def __init__(
        self, vlm: VisionLanguageModel, images: Sequence[Any], prompt: str | Prompt | None = None, questions: Sequence[str | Prompt] = (),
        batch_size: int = 8,
    ) -> None:  # fmt: skip
        self.answers: list[Rewrite] = []
        self._tokenizer = vlm.tokenizer
        places: dict[Site, list[int]] = {site: [] for site in vlm.architecture.w_outs}
        kept: dict[Site, list[Tensor]] = {site: [] for site in places}
        self.size = 0  # positions
        asked: list[tuple[Any, Any]] = [(batch, prompt) for batch in batches(images, batch_size)] if len(images) else []
        with Trace(vlm.architecture, norms=True) as trace:
            for pictures, text in [*asked, *((None, question) for question in questions)]:
                for row, generation in enumerate(vlm.generate_batch(vlm.inputs(pictures, text))):
                    image, said = None if pictures is None else pictures[row], (*generation.ids, min(vlm.end_ids))
                    n = len(generation.ids)
                    self.answers.append(Rewrite(image, text, generation, said, tuple(range(n))))
                    steps = range(min(n + 1, trace.n_steps))  # with the one that ends the answer
                    for site in kept:
                        o = torch.stack([trace.at(site, step, row) for step in steps])
                        _require_finite(vlm, site, o)
                        asked_at = o[:n].any(1).nonzero().flatten()  # an expert is asked at few positions
                        places[site] += (self.size + asked_at).tolist()
                        kept[site].append(o[asked_at].to("cpu", torch.bfloat16))
                    for norm in trace.norms:  # what the last W_outs have written
                        _require_finite(vlm, max(kept), torch.stack([trace.entered(norm, step, row) for step in steps]))
                    self.size += n
                trace.clear()
        self._places = {site: torch.tensor(found, dtype=torch.long) for site, found in places.items()}
        self._activations = {
            site: torch.cat(records) if records else torch.zeros(0, vlm.architecture.w_out(site).d_ffn)
            for site, records in kept.items()
        }

    def outside(self, words: Sequence[str]) -> Tensor:
        """The positions at which the model says none of some words, `[n]`."""
        kept, start = [], 0
        for answer in self.answers:
            ids = answer.generation.ids
            found = [said for word in words for said in occurrences(ids, word, self._tokenizer)]
            inside = {place for said in found for place in range(said.index, said.index + said.n_tokens)}
            kept += [start + place for place in range(len(ids)) if place not in inside]
            start += len(ids)
        return torch.tensor(kept, dtype=torch.long)

    def without(self, words: Sequence[str]) -> list[Rewrite]:
        """The answers that say none of some words."""
        return [
            a for a in self.answers if not any(occurrences(a.generation.ids, word, self._tokenizer) for word in words)
        ]

    def loudest(self, neurons: Sequence[Neuron], delta: Tensor, among: Sequence[Rewrite], n: int) -> list[Rewrite]:
        """The answers in which a change of rows would be heard most: where what it adds to the residual stream is longest.

        Args:
            neurons: whose rows.
            delta: what is added to each `[k, d_model]`.
            among: of which answers.
            n: how many.
        """
        written = (self.activations(neurons, torch.arange(self.size)) @ delta).norm(dim=1)
        lengths = [len(answer.generation.ids) for answer in self.answers]
        most = {a: float(part.max()) for a, part in zip(self.answers, written.split(lengths), strict=True) if len(part)}
        return sorted((a for a in among if a in most), key=lambda answer: -most[answer])[:n]

    def power(self, site: Site, positions: Tensor) -> Tensor:
        """The mean of o² of each neuron over some positions `[d_ffn]`."""
        there = torch.isin(self._places[site], positions)
        return self._activations[site][there].float().square().sum(0) / max(1, len(positions))

    def activations(self, neurons: Sequence[Neuron], positions: Tensor) -> Tensor:
        """The activations of some neurons at some positions `[n, k]`."""
        o = torch.zeros(self.size, len(neurons))
        for column, neuron in enumerate(neurons):
            o[self._places[neuron.site], column] = self._activations[neuron.site][:, neuron.unit].float()
        return o[positions]


def _require_finite(vlm: VisionLanguageModel, site: Site, computed: Tensor) -> None:
    if not bool(computed.isfinite().all()):
        raise not_finite(vlm.model, site)


def drawn_pictures(n: int, seed: int = 0) -> list[Any]:
    """Pictures for a background where a user has none: drawings of everyday things, which any model can caption.

    Args:
        n: how many.
        seed: other pictures for another number.

    Returns:
        PIL pictures, the same on every machine; nothing was trained on them, and none is in the benchmark.

    Example:
        >>> len(drawn_pictures(3))
        3
    """
    from mmedit.testbed.world import render, scene

    first = 9 * 10**8 + 10**4 * seed  # far beyond the numbers that training begins with
    return [render(scene("train", first + index))[0] for index in range(n)]

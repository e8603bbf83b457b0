"""BERTScore: each token of one text matched with the most alike token of the other (Zhang et al., ICLR 2020).

The conventions are those of the package bert-score 0.3.13 without rescaling, and the numbers agree with it wherever it
works under transformers 5 (tests/test_text_metrics.py). What it leaves open is settled so: an empty text scores 0; a text
whose tokens all have idf 0 counts them alike; the first word of a text is tokenized like the others in RoBERTa and GPT-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from mmedit.analysis.text_metrics.encoder import EncodedText, Encoder, Weights

TUNED_LAYERS = {"roberta-large": 17, "roberta-base": 10, "bert-base-uncased": 9, "bert-large-uncased": 18, "distilbert-base-uncased": 5, "deberta-xlarge-mnli": 40}  # fmt: skip
"""The layers that bert-score chose for known checkpoints, by how well they agree with human judgement on WMT16."""


class Overlap(NamedTuple):
    """How much of the candidate is in the reference, how much of the reference is in the candidate, and both."""

    precision: float
    recall: float
    f1: float


class BertScore:
    """BERTScore with any text encoder; called, it gives F1.

    Args:
        checkpoint: a local folder or a Hub id of an encoder, such as `roberta-large`, bert-score's own for English.
        layer: the layer whose states are compared, from 1. When None, the one that bert-score tuned for a checkpoint of
            this name, else the last.
        idf: texts whose inverse document frequencies weigh the tokens; bert-score's `idf=True` takes the references.
            Every token counts alike when None.
        device: where the encoder runs; the CPU when None.
        revision: branch, tag or commit on the Hub.
        batch_size: texts per forward pass.

    Raises:
        ModelError: if the encoder cannot be loaded or has no such layer.
        RequestError: for an empty idf corpus or a batch size below 1.
    """

    def __init__(
        self, checkpoint: str | Path, layer: int | None = None, idf: Sequence[str] | None = None,
        device: str | None = None, revision: str | None = None, batch_size: int = 64,
    ) -> None:  # fmt: skip
        layer = TUNED_LAYERS.get(Path(checkpoint).name) if layer is None else layer
        self.encoder = Encoder(checkpoint, layer, device, revision, batch_size)
        self.weights = Weights(self.encoder, idf)

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        """F1 of each candidate with its reference.

        Raises:
            RequestError: if there are not as many candidates as references.
        """
        return [overlap.f1 for overlap in self.overlaps(candidates, references)]

    def overlaps(self, candidates: Sequence[str], references: Sequence[str]) -> list[Overlap]:
        """Precision, recall and F1 of each candidate with its reference.

        Raises:
            RequestError: if there are not as many candidates as references.
        """
        return self.encoder.compare(candidates, references, self._overlap)

    def _overlap(self, candidate: EncodedText, reference: EncodedText) -> Overlap:
        """Zhang et al. 2020, section 3. The tokens that the tokenizer adds have weight 0, but may be matched with."""
        if not candidate.content.any() or not reference.content.any():
            return Overlap(0.0, 0.0, 0.0)
        x, y = (torch.nn.functional.normalize(text.states[-1], dim=-1) for text in (candidate, reference))
        similarity = x @ y.T  # [candidate tokens, reference tokens]
        precision = float(self.weights.of(candidate, candidate.content) @ similarity.amax(1))
        recall = float(self.weights.of(reference, reference.content) @ similarity.amax(0))
        total = precision + recall
        return Overlap(precision, recall, 2 * precision * recall / total if total else 0.0)

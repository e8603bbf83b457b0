"""BLEURT: a text encoder that was trained to rate a candidate against a reference (Sellam et al., ACL 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from mmedit.analysis.text_metrics.checkpoint import check_pairs, load_text_model, longest
from mmedit.errors import ModelError, RequestError


class Bleurt:
    """A BLEURT checkpoint: one number per pair, about 0 to 1, from the regression head of a sequence classifier.

    The reference goes first, as in the authors' code. No checkpoint that was published as BLEURT has been run in this
    project's tests, which have no network: they run this code on small random checkpoints.

    Args:
        checkpoint: a local folder or a Hub id of a sequence classifier with one output, such as `Elron/bleurt-base-512`.
        device: where the model runs; the CPU when None.
        revision: branch, tag or commit on the Hub.
        batch_size: pairs per forward pass.

    Raises:
        ModelError: if the model cannot be loaded, has another number of outputs, or its head was never trained.
        RequestError: for a batch size below 1.
    """

    def __init__(
        self, checkpoint: str | Path, device: str | None = None, revision: str | None = None, batch_size: int = 32
    ) -> None:
        if batch_size < 1:
            raise RequestError("a batch holds at least one pair", got=f"batch_size={batch_size}", expected="1 or more")
        self.tokenizer, self.model = load_text_model(AutoModelForSequenceClassification, checkpoint, device, revision)
        if self.model.config.num_labels != 1:
            got = f"{self.model.config.num_labels} outputs"
            raise ModelError(
                "not a BLEURT checkpoint", where=checkpoint, got=got, expected="a regression head, 1 output"
            )
        self.batch_size = batch_size
        limit = longest(self.tokenizer, self.model.config)
        self._cut = {} if limit is None else {"truncation": "longest_first", "max_length": limit}

    @torch.inference_mode()
    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        """The rating of each candidate against its reference.

        Raises:
            RequestError: if there are not as many candidates as references.
        """
        check_pairs(candidates, references)
        pairs = list(zip(references, candidates))
        scores = [0.0] * len(pairs)
        by_length = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
        for start in range(0, len(pairs), self.batch_size):
            chosen = by_length[start : start + self.batch_size]
            first, second = zip(*(pairs[i] for i in chosen))
            batch = self.tokenizer(list(first), list(second), return_tensors="pt", padding=True, **self._cut)
            for i, logit in zip(chosen, self.model(**batch.to(self.model.device)).logits[:, 0].tolist()):
                scores[i] = logit
        return scores

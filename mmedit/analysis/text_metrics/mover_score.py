"""MoverScore: the least work that turns the words of one text into those of the other (Zhao et al., EMNLP 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmedit.analysis.text_metrics.encoder import EncodedText, Encoder, Weights
from mmedit.errors import ModelError, RequestError


class MoverScore:
    """MoverScore with any text encoder: 1 less the earth mover's distance between two texts.

    The distance is the Euclidean one of the paper and of the authors' moverscore_v2; their first script takes its square.
    Words are represented as in the paper by power means over the last layers, and one vector stands for a word: that of
    its first token. Punctuation and what the tokenizer adds are left out. A text without words is stood for by its
    punctuation; an empty text scores 0.

    Args:
        checkpoint: a local folder or a Hub id of an encoder.
        layers: the last layers that are averaged over; 1 gives moverscore_v2, which takes the last one as it is.
        n_gram: words per vector.
        idf: texts whose inverse document frequencies weigh the references' tokens, usually the references. Every token
            counts alike when None.
        candidate_idf: the same for the candidates' tokens, usually the candidates; as for the references when None.
        device: where the encoder runs; the CPU when None.
        revision: branch, tag or commit on the Hub.
        batch_size: texts per forward pass.

    Raises:
        ModelError: if the encoder cannot be loaded or has fewer layers, or POT is not installed.
        RequestError: for an empty idf corpus, or an n_gram or batch size below 1.
    """

    def __init__(
        self, checkpoint: str | Path, layers: int = 5, n_gram: int = 1, idf: Sequence[str] | None = None, candidate_idf: Sequence[str] | None = None,
        device: str | None = None, revision: str | None = None, batch_size: int = 64,
    ) -> None:  # fmt: skip
        try:
            import ot
        except ImportError as error:
            do = "pip install 'mmedit-vlm[analysis]'"
            raise ModelError("MoverScore needs the package POT", got=str(error), do=do) from error
        if n_gram < 1:
            raise RequestError("an n-gram holds at least one word", got=f"n_gram={n_gram}", expected="1 or more")
        self.encoder = Encoder(checkpoint, None, device, revision, batch_size)
        if not 1 <= layers <= self.encoder.n_layers:
            expected = f"1 to {self.encoder.n_layers}"
            raise ModelError("no so many layers in this encoder", where=checkpoint, got=layers, expected=expected)
        self.layers, self.n_gram, self._emd = layers, n_gram, ot.emd2
        self.weights = Weights(self.encoder, idf)
        self.candidate_weights = self.weights if candidate_idf is None else Weights(self.encoder, candidate_idf)

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        """The score of each candidate with its reference, from -1 to 1; 1 for texts of the same words.

        Raises:
            RequestError: if there are not as many candidates as references.
        """
        return self.encoder.compare(candidates, references, self._score, self.layers)

    def _score(self, candidate: EncodedText, reference: EncodedText) -> float:
        """1 - min over F >= 0 of <C, F> with F 1 = f_x and F' 1 = f_y (section 3.1)."""
        if not candidate.content.any() or not reference.content.any():
            return 0.0
        x, f_x = self._n_grams(candidate, self.candidate_weights)
        y, f_y = self._n_grams(reference, self.weights)
        costs = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # of unit vectors, so 0 to 2
        return 1 - float(self._emd(f_x.numpy(), f_y.numpy(), costs.numpy()))

    def _n_grams(self, text: EncodedText, weights: Weights) -> tuple[Tensor, Tensor]:
        """Unit vectors float64 `[n_grams, d]` and their shares `[n_grams]` of a text (equation 1 and section 3.2)."""
        words = text.words if text.words.any() else text.content
        shares = weights.of(text, words)[words].double()
        vectors = _power_means(text.states[:, words].double())
        n = min(self.n_gram, len(shares))
        shares, vectors = shares.unfold(0, n, 1), vectors.unfold(0, n, 1)  # [n_grams, n], [n_grams, d, n]
        weight = shares.sum(-1)
        means = torch.einsum("gdn,gn->gd", vectors, shares)[weight > 0]
        return normalize(means, dim=-1), (weight / weight.sum())[weight > 0]


def _power_means(states: Tensor) -> Tensor:
    """`[n_words, 3 d]`: minimum, mean and maximum over the layers of unit vectors `[n_layers, n_words, d]` (section 3.3)."""
    states = normalize(states, dim=-1)
    return torch.cat([states.amin(0), states.mean(0), states.amax(0)], dim=-1)

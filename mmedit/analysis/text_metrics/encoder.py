"""Texts as the hidden states of a text encoder, one vector per token, for metrics that compare tokens."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel

from mmedit.analysis.text_metrics.checkpoint import check_pairs, load_text_model, longest
from mmedit.errors import RequestError

T = TypeVar("T")
CHUNK = 512
"""Pairs whose states are in memory at a time."""


@dataclass(frozen=True)
class EncodedText:
    """A text's tokens."""

    ids: Tensor
    """int64 `[n_tokens]`, with what the tokenizer adds at either end."""
    states: Tensor
    """float32 `[n_layers, n_tokens, d_model]`, of the encoder's last layers, on the CPU."""
    content: Tensor
    """bool `[n_tokens]`: not added by the tokenizer."""
    words: Tensor
    """bool `[n_tokens]`: the first token of a word that is not punctuation."""


class Encoder:
    """A text encoder of transformers.

    Args:
        name: a local folder or a Hub id of anything that AutoModel loads; of an encoder-decoder the encoder is used.
        layer: the last layer to run, from 1; those above are not loaded. The model's last when None.
        device: where it runs; the CPU when None.
        revision: branch, tag or commit on the Hub.
        batch_size: texts per forward pass.

    Raises:
        ModelError: if it cannot be loaded or has no such layer.
        RequestError: for a batch size below 1.
    """

    def __init__(
        self, name: str | Path, layer: int | None = None, device: str | None = None, revision: str | None = None, batch_size: int = 64
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise RequestError("a batch holds at least one text", got=f"batch_size={batch_size}", expected="1 or more")
        self.tokenizer, model = load_text_model(AutoModel, name, device, revision, layer)
        self.model = model.get_encoder() if model.config.is_encoder_decoder else model
        self.n_layers: int = model.config.num_hidden_layers
        self.batch_size = batch_size
        limit = longest(self.tokenizer, model.config)
        self._cut: dict[str, Any] = {} if limit is None else {"truncation": True, "max_length": limit}

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, cut to what the model takes."""
        return list(self.tokenizer(text.strip(), **self._cut)["input_ids"])

    @torch.inference_mode()
    def encode(self, texts: Iterable[str], n_layers: int = 1) -> dict[str, EncodedText]:
        """The tokens of texts with their states in the last layers; each text is run once, those of like length together."""
        plain = {text: text.strip() for text in texts}
        found = {
            text: self.tokenizer(text, return_special_tokens_mask=True, return_offsets_mapping=True, **self._cut)
            for text in sorted(set(plain.values()))
        }
        by_length = sorted(found, key=lambda text: len(found[text]["input_ids"]))
        encoded: dict[str, EncodedText] = {}
        for start in range(0, len(by_length), self.batch_size):
            batch = by_length[start : start + self.batch_size]
            ids = [torch.tensor(found[text]["input_ids"]) for text in batch]
            mask = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
            padded = pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id or 0)
            device = self.model.device
            output = self.model(padded.to(device), attention_mask=mask.to(device), output_hidden_states=True)
            states = torch.stack(output.hidden_states[-n_layers:], dim=1).float().cpu()
            for text, token_ids, layers in zip(batch, ids, states):
                encoded[text] = _encoded(text, found[text], token_ids, layers[:, : len(token_ids)].clone())
        return {text: encoded[stripped] for text, stripped in plain.items()}

    def compare(
        self, candidates: Sequence[str], references: Sequence[str], score: Callable[[EncodedText, EncodedText], T], n_layers: int = 1
    ) -> list[T]:  # fmt: skip
        """The score of each pair of a candidate and its reference.

        Raises:
            RequestError: if there are not as many candidates as references.
        """
        check_pairs(candidates, references)
        scores: list[T] = []
        for start in range(0, len(candidates), CHUNK):
            pairs = list(zip(candidates[start : start + CHUNK], references[start : start + CHUNK]))
            encoded = self.encode({text for pair in pairs for text in pair}, n_layers)
            scores += [score(encoded[candidate], encoded[reference]) for candidate, reference in pairs]
        return scores


class Weights:
    """How much each token of a text counts: alike, or by its inverse document frequency in a corpus.

    `idf(w) = log((M + 1) / (m(w) + 1))` where m of the corpus's M texts have token w (Zhang et al. 2020, section 3).

    Args:
        encoder: whose tokens they are.
        corpus: the texts; every token counts alike when None.

    Raises:
        RequestError: if the corpus is empty.
    """

    def __init__(self, encoder: Encoder, corpus: Sequence[str] | None) -> None:
        if corpus is not None and not corpus:
            raise RequestError("idf weights need a corpus", got="no texts", do="give the references, or None")
        self.n_texts = 0 if corpus is None else len(corpus)
        self.n_with: Counter[int] = Counter(token for text in corpus or () for token in set(encoder.ids(text)))

    def of(self, text: EncodedText, counted: Tensor) -> Tensor:
        """float32 `[n_tokens]`, 0 where not counted, with sum 1; alike where all that are counted have idf 0."""
        if not self.n_texts:
            return _shares(counted.float())
        idf = torch.tensor([log((self.n_texts + 1) / (self.n_with[int(token)] + 1)) for token in text.ids])
        weights = idf * counted
        return _shares(weights if weights.sum() > 0 else counted.float())


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def _encoded(text: str, tokens: Any, ids: Tensor, states: Tensor) -> EncodedText:
    """A text with what its tokenizer says of it. Some begin a word with a token for the space before it: that is passed by."""
    content = [not special for special in tokens["special_tokens_mask"]]
    words, last = [], None
    for own, number, (start, end) in zip(content, tokens.word_ids(), tokens["offset_mapping"]):
        said = any(sign not in string.punctuation for sign in text[start:end].strip())
        words.append(own and said and (number is None or number != last))
        last = number if words[-1] else last
    return EncodedText(ids, states, torch.tensor(content), torch.tensor(words))

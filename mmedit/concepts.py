"""A concept in a generated caption: a word, stood for by its first token."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmedit.errors import RequestError
from mmedit.nouns import find_nouns, token_spans, tokens_between


@dataclass(frozen=True)
class Occurrence:
    """A word in a generated text.

    Args:
        word: as the text has it.
        start: character offset in the text.
        index: which generated token the word begins in.
        token_id: that token.
        n_tokens: how many tokens the word spans.
    """

    word: str
    start: int
    index: int
    token_id: int
    n_tokens: int

    def overlaps(self, other: Occurrence) -> bool:
        """Whether two words share a character of the text."""
        return self.start < other.start + len(other.word) and other.start < self.start + len(self.word)


def occurrences(ids: tuple[int, ...], word: str, tokenizer: Any) -> list[Occurrence]:
    """Where a word stands in a generated text, in any case, as a whole word.

    Args:
        ids: the generated tokens.
        word: one word or several.
        tokenizer: that generated them.

    Returns:
        Every occurrence, in reading order.
    """
    text, _ = token_spans(ids, tokenizer)
    found = re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    return [occurrence_at(ids, match.start(), match.end(), tokenizer) for match in found]


def occurrence_at(ids: tuple[int, ...], start: int, end: int, tokenizer: Any) -> Occurrence:
    """The word between two character offsets of a generated text, with its tokens."""
    first, n_tokens = tokens_between(ids, tokenizer, start, end)
    return Occurrence(token_spans(ids, tokenizer)[0][start:end], start, first, ids[first], n_tokens)


def swapped(
    ids: tuple[int, ...], source: Occurrence, target: str, tokenizer: Any
) -> tuple[tuple[int, ...], Occurrence]:
    """The target in the source's place, with the tokens that it has there.

    Args:
        ids: the generated tokens.
        source: the occurrence to be replaced.
        target: the word to stand there instead.
        tokenizer: that generated them.

    Returns:
        The tokens of the new text, and the target's occurrence in it.
    """
    text, _ = token_spans(ids, tokenizer)
    end = source.start + len(source.word)
    new_ids = tuple(tokenizer(text[: source.start] + target + text[end:], add_special_tokens=False).input_ids)
    shift = token_spans(new_ids, tokenizer)[0].find(
        target, max(0, source.start - 1)
    )  # a decoder may drop a leading space
    return new_ids, occurrence_at(new_ids, shift, shift + len(target), tokenizer)


def require_occurrences(
    ids: tuple[int, ...], source: str, tokenizer: Any, where: str, forms: Iterable[str] = ()
) -> list[Occurrence]:
    """The occurrences of a source, or of other forms of it, that must be there, in reading order.

    Raises:
        RequestError: if the source is not in the caption; it shows the caption and its nouns.
    """
    found = [said for form in dict.fromkeys((source, *forms)) for said in occurrences(ids, form, tokenizer)]
    if not found:
        text = token_spans(ids, tokenizer)[0].strip()
        nouns = ", ".join(noun.text for noun in find_nouns(text)) or "none"
        raise RequestError(
            f"the model does not say {source!r} about this picture", where=where, got=f"{text!r} (nouns: {nouns})",
            expected=f"a caption with {source!r}", do="choose one of the nouns as source, another picture, or another prompt",
        )  # fmt: skip
    return sorted(found, key=lambda said: said.start)

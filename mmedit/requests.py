"""What a user asks for: a concept swap, seen in some pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmedit.errors import RequestError


@dataclass(frozen=True)
class Prompt:
    """What the user says to the model, and the words that the answer is made to begin with.

    Args:
        text: the instruction.
        prefix: the beginning of the answer.
        no_space: whether prefix and answer follow the text before them as they stand, without a space put between; EasyEdit's
            scores are taken so.
        system: what the model is told before the conversation, for families whose chat template has a place for it.

    Example:
        >>> Prompt("Describe the image in few words.", "An image of").prefix
        'An image of'
    """

    text: str
    prefix: str = ""
    no_space: bool = False
    system: str = ""


CAPTION_PROMPT = Prompt("Describe the image in few words.", "An image of")
"""The prompt of Pan et al., section 3.1."""


def as_prompt(prompt: str | Prompt | None) -> Prompt:
    """None is the paper's caption prompt, a string is an instruction without an answer prefix."""
    if prompt is None:
        return CAPTION_PROMPT
    return Prompt(prompt) if isinstance(prompt, str) else prompt


def as_list(images: Any) -> list[Any]:
    """One picture or several, as a list."""
    return list(images) if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]


@dataclass(frozen=True)
class EditRequest:
    """A concept swap: where the model says `source`, it shall say `target`.

    Args:
        images: one picture or several that show the source; paths, PIL pictures or arrays.
        source: the word in the model's caption to be replaced. None: whatever the model answers now; the target is then
            its whole new answer, and the edit is made at the first token that differs.
        target: the word to be said instead.
        prompt: the question; the paper's caption prompt when None.
        forms: other forms of the source, each with what shall be said instead ({"cats": "dogs"}). Where an answer has one of
            them, it is replaced too; capital letters make no other form.

    Raises:
        RequestError: for an empty list of pictures, an empty word, or a source equal to its target.

    Example:
        >>> EditRequest("cat.png", "cat", "dog").images
        ('cat.png',)
    """

    images: Any
    source: str | None
    target: str
    prompt: str | Prompt | None = None
    forms: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(as_list(self.images)))
        object.__setattr__(self, "forms", dict(self.forms))
        if not self.images or any(image is None for image in self.images):
            raise RequestError(
                "an edit needs at least one picture",
                got=f"images={list(self.images)!r}",
                do="give a picture in which the model names the source",
            )
        for name in ("target",) if self.source is None else ("source", "target"):
            word = getattr(self, name)
            if not isinstance(word, str) or not word.strip():
                raise RequestError(
                    f"the {name} of a concept swap is a word", got=repr(word), expected="a non-empty string"
                )
            to_the_letter = self.source is None and as_prompt(self.prompt).no_space
            object.__setattr__(self, name, word if to_the_letter else word.strip())
        if self.source is not None and self.source.casefold() == self.target.casefold():
            raise RequestError("source and target are the same word", got=repr(self.source), do="choose another target")
        words = [word for pair in self.forms.items() for word in pair]
        if words and (self.source is None or not all(isinstance(word, str) and word.strip() for word in words)):
            raise RequestError(
                "forms are words of a source with what replaces them", got=f"source={self.source!r}, forms={self.forms!r}", expected='{"cats": "dogs"}',
            )  # fmt: skip

    @property
    def swaps(self) -> dict[str, str]:
        """Every form of the source with what shall be said instead; empty where the whole answer is replaced."""
        return {} if self.source is None else {self.source: self.target, **self.forms}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EditRequest:
        """Read a request from a mapping, as ROME-style harnesses hand it over.

        Args:
            values: `source` and `target`, `images` or `image`, and optionally `prompt` and `forms`; with a `prompt`, `source` may be left
                out, as EasyEdit does. Other keys are the harness's own.

        Raises:
            RequestError: if one of them is missing.

        Example:
            >>> EditRequest.from_dict({"image": "cat.png", "source": "cat", "target": "dog", "case_id": 3}).target
            'dog'
        """
        images = values.get("images", values.get("image"))
        needed = ("target",) if values.get("prompt") else ("source", "target")
        missing = [name for name in needed if name not in values] + (["images"] if images is None else [])
        if missing:
            raise RequestError(
                "a request lacks fields", got=f"keys {sorted(map(str, values))}", expected=f"also {', '.join(missing)}"
            )
        return cls(images, values.get("source"), values["target"], values.get("prompt"), values.get("forms") or {})

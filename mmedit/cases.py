"""What an edit is judged on: probes, which are questions put to the model before and after it, and cases, which are edits with theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmedit.errors import RequestError
from mmedit.requests import CAPTION_PROMPT, EditRequest, Prompt

Kind = Literal["edit", "related", "rephrased", "question", "portability", "unrelated", "text_only", "same_image"]

CHANGING: tuple[Kind, ...] = ("edit", "related", "rephrased", "question", "portability")
"""Kinds of probes whose answers the edit shall change."""

STAYING: tuple[Kind, ...] = ("unrelated", "text_only", "same_image")
"""Kinds of probes whose answers it shall leave alone."""


@dataclass(frozen=True)
class Probe:
    """One question put to the model, before and after an edit.

    Args:
        kind: `edit` (a picture and prompt that the edit was made from), `related` (another picture with the source),
            `rephrased` (the edit's picture under another prompt), `question` (one whose answer is the source),
            `portability` (one whose answer follows from the edit); `unrelated` (a picture without the source), `text_only`
            (no picture), `same_image` (about something else in a picture with the source).
        image: the picture, or None for a text-only prompt.
        prompt: the instruction.
        answer: what the data set says is right after the edit; None to judge by the unedited model's own answer, with the
            source replaced where the edit shall change it.
        objects: the nouns of what the picture shows, where that is known.
        label: what to call the picture in reports.

    Raises:
        RequestError: for an unknown kind, or a text-only probe with a picture.

    Example:
        >>> Probe("unrelated", "boat.png").prompt.prefix
        'An image of'
    """

    kind: Kind
    image: Any
    prompt: Prompt = CAPTION_PROMPT
    answer: str | None = None
    objects: tuple[str, ...] | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.kind not in CHANGING + STAYING:
            raise RequestError("no such kind of probe", got=repr(self.kind), expected=", ".join(CHANGING + STAYING))
        if self.kind == "text_only" and self.image is not None:
            raise RequestError("a text-only probe has no picture", got=f"{self.image!r}", do="leave the picture out")

    @property
    def changing(self) -> bool:
        """Whether the edit shall change the answer."""
        return self.kind in CHANGING


@dataclass(frozen=True)
class EditCase:
    """One edit of a benchmark, with the probes that it is judged on.

    Args:
        id: unique in its benchmark.
        request: the edit.
        probes: what it is judged on.

    Example:
        >>> case = EditCase("0", EditRequest("cat.png", "cat", "dog"), (Probe("edit", "cat.png"),))
        >>> case.probes[0].changing
        True
    """

    id: str
    request: EditRequest
    probes: tuple[Probe, ...]

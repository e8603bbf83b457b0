"""One self-contained HTML page about an edit: pictures, captions before and after, the neurons."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedit.evaluation.metrics import changed_words
from mmedit.files import write_text
from mmedit.models.images import load_image
from mmedit.neuron import Neuron, NeuronRanking

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Case:
    """One picture with its captions, and whether the edit did right by it."""

    picture: Any
    before: str
    after: str
    right: bool
    verdict: str


@dataclass(frozen=True)
class Group:
    """Cases of one kind, with a heading and a sentence."""

    title: str
    text: str
    cases: Sequence[Case]


def write_page(
    path: str | Path, title: str, subtitle: str, figures: Sequence[tuple[str, str]], groups: Sequence[Group],
    ranking: NeuronRanking | None = None, edited: Collection[Neuron] = (),
) -> None:  # fmt: skip
    """Write the page; everything in it is escaped and nothing is loaded from elsewhere.

    Args:
        path: the HTML file.
        title: heading of the page.
        subtitle: one line under it.
        figures: values with what they are, shown large.
        groups: the cases.
        ranking: neurons to list, best first.
        edited: those of them that were changed.

    Raises:
        OutputError: if the file cannot be written.
    """
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    rows = [
        {"neuron": str(neuron), "score": score, "activation": activation, "tokens": tokens, "edited": neuron in edited}
        for (neuron, score, tokens), activation in zip(
            ranking or (), ranking.activations if ranking else (), strict=True
        )
    ]
    shown = [
        {
            "title": g.title,
            "text": g.text,
            "cases": [
                vars(c) | {"picture": data_uri(c.picture), "words": changed_words(c.before, c.after)} for c in g.cases
            ],
        }
        for g in groups
    ]
    labelled = [{"value": value, "label": label} for value, label in figures]
    write_text(path, template.render(title=title, subtitle=subtitle, figures=labelled, groups=shown, ranking=rows))


def data_uri(picture: Any) -> str:
    """A picture as a `data:` address, at most 512 pixels a side."""
    image = load_image(picture)
    image.thumbnail((512, 512))
    image.save(buffer := io.BytesIO(), "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

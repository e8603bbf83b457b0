"""Writing edit cases as a benchmark in MMEdit's format, with pictures, so that other frameworks can run on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmedit.cases import EditCase, Probe
from mmedit.data import own_format
from mmedit.errors import DataError
from mmedit.evaluation.metrics import replaced
from mmedit.models.images import image_digest, load_image
from mmedit.patches.new_folder import new_folder
from mmedit.testbed.benchmark import right_answer

FILE = "caption_eval_edit.json"  # MMEdit's own name for a file of captions
NEEDED = ("edit", "rephrased", "related", "text_only", "unrelated")
"""Kinds of probes that every record of MMEdit has one of."""


def export_mmedit(cases: Sequence[EditCase], folder: str | Path, answers: Callable[[Probe], str] | None = None) -> Path:
    """Write cases into a new folder, which appears whole or not at all: `caption_eval_edit.json` and `images/`.

    EasyEdit's `CaptionDataset` reads it with `coco_image` and `rephrase_image` set to the folder. A record holds the first
    probe of each of MMEdit's five kinds; all of them stand under its key `mmedit`, which other loaders pass by and
    `load_cases` reads. Where a prompt comes with the beginning of its answer, that is part of the answers written.

    Args:
        cases: from `iconworld_cases`, `load_cases` or of your own.
        folder: a path where nothing is, or an empty folder.
        answers: what the model to be edited says to a probe, without the prompt's answer prefix; MMEdit's `pred`. What is
            right in IconWorld when None.

    Returns:
        The file of records.

    Raises:
        DataError: if a case lacks a probe of one of the five kinds.
        ImageError: if a picture cannot be read.
        OutputError: if something is there, or it cannot be written.
        RequestError: if `answers` is None and a probe is none of IconWorld.

    Example:
        >>> import tempfile
        >>> from mmedit.data.benchmarks import load_cases
        >>> from mmedit.testbed.benchmark import iconworld_cases
        >>> file = export_mmedit(iconworld_cases(1), Path(tempfile.mkdtemp(), "iconworld"))
        >>> print(load_cases(file, "mmedit"))
        1 edits
    """
    with new_folder(folder) as part:
        (part / "images").mkdir()
        places: dict[int, str] = {}

        def place(image: Any) -> str:
            """Where a picture is kept, once however often it is used."""
            if id(image) not in places:
                places[id(image)] = f"images/{image_digest(image)[:20]}.png"
                load_image(image).save(part / places[id(image)])
            return places[id(image)]

        records = [_record(case, place, answers or right_answer) for case in cases]
        (part / FILE).write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    return Path(folder) / FILE


def _record(case: EditCase, place: Callable[[Any], str], answers: Callable[[Probe], str]) -> dict[str, Any]:
    first = {probe.kind: probe for probe in reversed(case.probes)}
    if missing := [kind for kind in NEEDED if kind not in first]:
        raise DataError("MMEdit's format needs more probes", where=f"case {case.id}", got=", ".join(first), expected=f"also {', '.join(missing)}")  # fmt: skip
    edit, rephrased, related, text_only, unrelated = (first[kind] for kind in NEEDED)  # type: ignore[index]
    now, source, target = answers(edit), case.request.source, case.request.target
    new = edit.answer or (target if source is None else replaced(now, source, target))
    return {
        "src": edit.prompt.text,
        "pred": _whole(edit, now),
        "rephrase": rephrased.prompt.text,
        "alt": _whole(edit, new),
        "image": place(edit.image),
        "image_rephrase": place(related.image),
        "loc": text_only.prompt.text,
        "loc_ans": _whole(text_only, text_only.answer or answers(text_only)),
        "m_loc": place(unrelated.image),
        "m_loc_q": unrelated.prompt.text,
        "m_loc_a": _whole(unrelated, unrelated.answer or answers(unrelated)),
        own_format.KEY: own_format.values_of(case, place),
    }


def _whole(probe: Probe, answer: str) -> str:
    return f"{probe.prompt.prefix} {answer}".strip()

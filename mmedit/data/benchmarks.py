"""Benchmark files in the formats of MMEdit, VLKEB, ComprehendEdit and MMKE-Bench, as edit cases."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmedit.cases import EditCase
from mmedit.data import comprehendedit, mmedit_format, mmke, vlkeb
from mmedit.data.records import Options, Record, Skipped
from mmedit.data.strangers import parse_json, read_text
from mmedit.errors import DataError, RequestError

FORMATS = {
    "mmedit": mmedit_format.cases_of,
    "vlkeb": vlkeb.cases_of,
    "comprehendedit": comprehendedit.cases_of,
    "mmke": mmke.cases_of,
}
"""For each format what reads one record of it."""


@dataclass(frozen=True)
class Cases:
    """The edits of a benchmark file.

    Args:
        cases: one for each record that is used, or several; in the file's order.
        skipped: for each reason how many records were left out.
    """

    cases: tuple[EditCase, ...]
    skipped: Mapping[str, int]

    def __str__(self) -> str:
        reasons = "".join(f", {n} left out: {reason}" for reason, n in self.skipped.items())
        return f"{len(self.cases)} edits{reasons}"


def load_cases(
    path: str | Path, format: str, images: str | Path | None = None, rephrase_images: str | Path | None = None,
    template: str | None = None, hop: int | None = None, skip_missing: bool = False,
) -> Cases:  # fmt: skip
    """Read a benchmark file.

    Args:
        path: a JSON list of records.
        format: one of `FORMATS`.
        images: the folder that paths of pictures begin at (EasyEdit's `coco_image`); the file's own when None.
        rephrase_images: the same for rephrased pictures (EasyEdit's `rephrase_image`); as `images` when None.
        template: what to ask questions about pictures in, with `{}` for the question, instead of the format's own; `"{}"`
            asks them as they are.
        hop: of VLKEB's and MMKE-Bench's questions of 1 to 4 steps only those with so many; all when None.
        skip_missing: leave out records with a picture that is not there.

    Returns:
        The cases, and how many records were left out for what reason: those that the format itself leaves out, because the
        new answer, or in E-VQA any field, is empty, and those in which nothing is asked. A case's id is the number of its
        record, from 0.

    Raises:
        DataError: if the file or a record is of another form, or no record is left; it says which record and field.
        ImageError: if a picture is not there.
        RequestError: for an unknown format, a template without `{}`, or no such hop.

    Example:
        >>> import json, tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (4, 4)).save(folder / "cat.png")
        >>> record = {"src": "What is this?", "rephrase": "What do you see?", "alt": "dog", "pred": "cat", "image": "cat.png",
        ...     "image_rephrase": "cat.png", "loc": "Who wrote Emma?", "loc_ans": "Jane Austen", "m_loc": "cat.png",
        ...     "m_loc_q": "What colour is it?", "m_loc_a": "black"}
        >>> _ = (folder / "vqa_eval.json").write_text(json.dumps([record, {**record, "alt": ""}]))
        >>> loaded = load_cases(folder / "vqa_eval.json", "mmedit")
        >>> print(loaded)
        1 edits, 1 left out: `alt` is empty
        >>> loaded.cases[0].probes[0].prompt.text
        'Question: What is this? Short answer:'
    """
    if format not in FORMATS:
        raise RequestError("no such format", got=repr(format), expected=f"one of {', '.join(FORMATS)}")
    if template is not None and "{}" not in template:
        raise RequestError("a template without a place for the question", got=repr(template), expected="{} in it")
    if hop is not None and hop not in range(1, 1 + len(mmedit_format.HOPS)):
        raise RequestError("no questions of so many steps", got=f"hop={hop}", expected="1 to 4, or None for all")
    file = Path(path)
    root = file.parent if images is None else Path(images)
    options = Options(root, root if rephrase_images is None else Path(rephrase_images), template, hop, skip_missing)
    values = parse_json(read_text(file), file)
    if not isinstance(values, list):
        raise DataError("not a list of records", where=file, got=reprlib.repr(values), expected="a JSON list")
    cases: list[EditCase] = []
    skipped: Counter[str] = Counter()
    for number, value in enumerate(values):
        record = Record.of(value, f"{file}[{number}]", str(number), options)
        try:
            cases += FORMATS[format](record)
        except Skipped as reason:
            skipped[str(reason)] += 1
        except RequestError as error:
            raise DataError(error.what, where=record.where, got=error.got, expected=error.expected) from error
    _check(cases, skipped, file, format)
    return Cases(tuple(cases), dict(skipped))


def _check(cases: list[EditCase], skipped: Mapping[str, int], file: Path, format: str) -> None:
    if not cases:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in skipped.items()) or "an empty list"
        raise DataError("no record of this file can be used", where=file, got=reasons, expected=f"records of {format}")
    twice = [name for name, n in Counter(case.id for case in cases).items() if n > 1]
    if twice:
        raise DataError("two cases with the same id", where=file, got=reprlib.repr(twice[0]))

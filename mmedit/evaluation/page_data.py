"""What the script of a report's page shows: each picture once, each probe once, and what became of it in every report."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any

from mmedit.evaluation.forced import ACCURACY, LOCALITY, SUFFIX
from mmedit.evaluation.judge import ProbeResult
from mmedit.evaluation.report import EditReport, picture_label
from mmedit.evaluation.wording import KINDS, verdict
from mmedit.models.images import load_image
from mmedit.printable import printable
from mmedit.requests import CAPTION_PROMPT

SIDE, SIDE_OF_MANY, MANY = 512, 256, 200  # pixels; the second where there are more pictures than the third
LOSSLESS = 1 << 15  # bytes up to which a picture is kept as it is
KEPT, ADDED, GONE = 0, 1, -1
_BY_ITSELF = "[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"  # scripts without spaces: one character is a word
_WORD = re.compile(rf"\s*(?:{_BY_ITSELF}|(?:(?!{_BY_ITSELF})\w)+|[^\w\s])")
_COLUMNS = {
    "agreement": [f"agreement_{suffix}" for suffix in SUFFIX.values()],
    "kl": [f"kl_{suffix}" for suffix in SUFFIX.values()],
    "easyedit": [*ACCURACY.values(), *(name for name, _ in LOCALITY.values())],
}
"""The numbers of a probe; it has at most one of each."""


def page_data(reports: Sequence[EditReport]) -> dict[str, Any]:
    """The pictures, probes and results of some reports, as JSON values that can be shown as they are.

    Raises:
        ImageError: if a picture can no longer be read.
    """
    pictures, places = _pictures(result.probe.image for report in reports for result in report.results)
    probes: dict[Any, dict[str, Any]] = {}
    results = []
    for number, report in enumerate(reports):
        times: Counter[Any] = Counter()  # the same may be asked twice
        for result in report.results:
            probe = result.probe
            row = {
                "case": result.case, "kind": probe.kind, "picture": places.get(_key(probe.image)),
                "name": picture_label(probe.image, probe.label), "prompt": f"{probe.prompt.text} {probe.prompt.prefix}".strip(),
                "usual": probe.prompt == CAPTION_PROMPT, "before": result.before,
            }  # fmt: skip
            key = (*row.values(), probe.answer)
            times[key] += 1
            found = probes.setdefault((key, times[key]), {"number": len(probes), **row})
            results.append({"probe": found["number"], "report": number, **_outcome(result)})
    names = [report.name for report in reports]
    titles = {kind: title for kind, (title, _) in KINDS.items()}
    data = {"reports": names, "kinds": titles, "probes": list(probes.values()), "results": results}
    return {"pictures": pictures, **_shown(data)}


def word_diff(before: str, after: str) -> list[tuple[int, str]]:
    """What became of an answer: its words in turn, kept (0), added (1) or gone (-1).

    Example:
        >>> word_diff("a red cat, asleep", "a dog, asleep")
        [(0, 'a'), (-1, ' red cat'), (1, ' dog'), (0, ', asleep')]
    """
    old, new = _WORD.findall(before), _WORD.findall(after)
    matcher = SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], autojunk=False)
    parts = []
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag != "equal":
            parts.append((GONE, "".join(old[i:i_end])))
        parts.append((KEPT if tag == "equal" else ADDED, "".join(new[j:j_end])))
    return [(change, text) for change, text in parts if text]


def _outcome(result: ProbeResult) -> dict[str, Any]:
    """What became of one probe in one report."""
    numbers = {
        column: next((result.scores[name] for name in names if name in result.scores), None)
        for column, names in _COLUMNS.items()
    }
    return {
        "words": word_diff(result.before, result.after), "expected": result.expected, "right": result.right,
        "verdict": verdict(result), **numbers,
    }  # fmt: skip


def _pictures(images: Iterable[Any]) -> tuple[list[dict[str, Any]], dict[Any, int]]:
    """Each different picture, and which of them every image is."""
    distinct = {_key(image): image for image in images if image is not None}
    side = SIDE if len(distinct) <= MANY else SIDE_OF_MANY
    shown: dict[str, dict[str, Any]] = {}
    places = {}
    for key, image in distinct.items():
        thumbnail = load_image(image)
        thumbnail.thumbnail((side, side))
        uri = _uri(thumbnail)
        found = shown.setdefault(uri, {"number": len(shown), "uri": uri, "width": thumbnail.width, "height": thumbnail.height})  # fmt: skip
        places[key] = found["number"]
    return list(shown.values()), places


def _key(image: Any) -> Any:
    return str(image) if isinstance(image, str | os.PathLike) else id(image)


def _uri(image: Any) -> str:
    """A picture as a `data:` address: PNG, or JPEG where that would be large."""
    image.save(buffer := io.BytesIO(), kind := "PNG")
    if buffer.tell() > LOSSLESS:
        image.save(buffer := io.BytesIO(), kind := "JPEG", quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shown(value: Any) -> Any:
    """JSON values without control characters, and without numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _shown(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return printable(value, keep="\n") if isinstance(value, str) else value

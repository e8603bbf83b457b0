"""One self-contained HTML page about edits: figures with intervals, pictures, every answer before and after, the neurons.

Nothing in it is loaded from elsewhere, and its policy lets no script run but its own. Probes and pictures lie in it once, as
data; the script shows some of them at a time, so that a page of thousands opens at once.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmedit.evaluation.comparison import comparison
from mmedit.evaluation.intervals import plain
from mmedit.evaluation.page_data import page_data
from mmedit.evaluation.report import EditReport
from mmedit.evaluation.wording import GROUPS, HEADLINE, KINDS, lower_is_better
from mmedit.files import write_text
from mmedit.neuron import Neuron, NeuronRanking
from mmedit.printable import printable

HERE = Path(__file__).parent
COLUMNS = {
    "edit": "Edit", "case": "Case", "name": "Picture", "before": "Before", "after": "After", "verdict": "Outcome", "kind": "Kind",
    "prompt": "Prompt", "agreement": "Agreement", "kl": "KL", "easyedit": "EasyEdit",
}  # fmt: skip
"""Of the table of all probes, by their keys in the data."""


def write_report(
    path: str | Path, reports: Sequence[EditReport], title: str | None = None,
    ranking: NeuronRanking | None = None, edited: Collection[Neuron] = (), compared: Sequence[EditReport] = (), plot: bytes = b"",
) -> None:  # fmt: skip
    """Write a page about one edit, or about several side by side.

    Args:
        path: the HTML file.
        reports: one for each edit, or editor; what they were asked alike is shown together.
        title: heading of the page; the edits' names when None.
        ranking: neurons to list, best first.
        edited: those of them that were changed.
        compared: reports of a benchmark to be put side by side in a table, which may be more than are shown in full.
        plot: a PNG to go with the table.

    Raises:
        ImageError: if a picture can no longer be read.
        OutputError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from mmedit.cases import Probe
        >>> from mmedit.evaluation.judge import ProbeResult
        >>> result = ProbeResult(Probe("text_only", None), "yes", "yes", "yes", True, {"locality_text": 1.0})
        >>> write_report(Path(tempfile.mkdtemp()) / "page.html", [EditReport("cat→dog", "a model", (result,))])
    """
    from jinja2 import Environment, StrictUndefined

    names, data = [report.name for report in reports], page_data(reports)
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_printable, trim_blocks=True, lstrip_blocks=True
    )
    page.filters |= {"figure": plain, "percent": _percent}
    html = page.from_string((HERE / "page.html").read_text(encoding="utf-8")).render(
        title=title or (", ".join(names) if len(names) <= 3 else f"{len(names)} edits side by side"),
        style=style, script=script, script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        reports=reports, models=list(dict.fromkeys(report.model for report in reports)), data=data,
        headline=_headline(reports), groups=list(_groups(reports)), kinds=list(_kinds(reports)),
        columns=_columns(data), neurons=_neurons(ranking, edited),
        compared=comparison(compared) if compared else [], plot=base64.b64encode(plot).decode(),
    )  # fmt: skip
    write_text(path, html)


def _percent(value: float, scale: float) -> float:
    """Where a value stands on a bar."""
    return round(100 * min(max(value / scale, 0.0), 1.0), 2) if math.isfinite(value) else 0.0


def _printable(value: Any) -> Any:
    return printable(value, keep="\n") if type(value) is str else value  # markup is a str of another type


def _groups(reports: Sequence[EditReport]) -> Iterator[dict[str, Any]]:
    """Every metric that there is, in the groups of the wording; what these do not know comes last."""
    present = dict.fromkeys(name for report in reports for name in report.metrics)
    known = {name for _, _, members in GROUPS for name in members}
    scale = _scale_of_kl(reports)
    for title, text, members in (*GROUPS, ("More", "", {name: "" for name in present if name not in known})):
        metrics = [
            {
                "name": name, "text": said, "estimates": [report.metrics.get(name) for report in reports],
                "scale": scale if name.startswith("kl_") else 1.0, "lower": lower_is_better(name),
            }
            for name, said in members.items()
            if name in present
        ]  # fmt: skip
        if metrics:
            yield {"title": title, "text": text, "metrics": metrics}


def _scale_of_kl(reports: Sequence[EditReport]) -> float:
    """What has no bound is drawn up to the largest of its kind."""
    ends = [e.high for report in reports for name, e in report.metrics.items() if name.startswith("kl_")]
    return max((end for end in ends if math.isfinite(end) and end > 0), default=1.0)


def _headline(reports: Sequence[EditReport]) -> list[dict[str, Any]]:
    metrics = {metric["name"]: metric for group in _groups(reports) for metric in group["metrics"]}
    return [metrics[name] for name in HEADLINE if name in metrics]


def _kinds(reports: Sequence[EditReport]) -> Iterator[dict[str, Any]]:
    """The kinds of probes that there are, each with how many every report got right."""
    for kind, (title, text) in KINDS.items():
        rights = [[result.right for result in report.results if result.probe.kind == kind] for report in reports]
        if any(rights):
            counts = [(r.count(True), len(r) - r.count(None), r.count(None)) for r in rights]
            yield {"kind": kind, "title": title, "text": text, "counts": counts}


def _columns(data: dict[str, Any]) -> dict[str, str]:
    """The columns in which there is anything to tell probes apart."""
    empty = {
        name for name in ("agreement", "kl", "easyedit") if all(result[name] is None for result in data["results"])
    }
    empty |= {"edit"} if len(data["reports"]) == 1 else set()
    empty |= {"case"} if len({probe["case"] for probe in data["probes"]}) <= 1 else set()
    return {key: title for key, title in COLUMNS.items() if key not in empty}


def _neurons(ranking: NeuronRanking | None, edited: Collection[Neuron]) -> list[dict[str, Any]]:
    return [
        {"neuron": str(neuron), "score": score, "activation": activation, "tokens": tokens, "edited": neuron in edited}
        for (neuron, score, tokens), activation in zip(
            ranking or (), ranking.activations if ranking else (), strict=True
        )
    ]

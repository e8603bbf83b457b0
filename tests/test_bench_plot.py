"""The comparison of editors: its table, CSV and figure say what the reports say; what an edit needs of memory is measured."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmedit.cases import Kind, Probe
from mmedit.evaluation.bench import Outcome, report_of
from mmedit.evaluation.comparison import COSTS, MEASURES, bytes_text, comparison, comparison_text, write_comparison
from mmedit.evaluation.judge import ProbeResult
from mmedit.evaluation.memory import peak_memory
from mmedit.evaluation.page import write_report
from mmedit.evaluation.plot import ACROSS, CORNER, UP, comparison_figure, png
from mmedit.evaluation.report import EditReport

KINDS: dict[str, Kind] = {ACROSS: "unrelated", UP: "related", "locality_text": "text_only"}


def report(editor: str, locality: float, generality: float, at_once: int = 1, cases: int = 40) -> EditReport:
    """A report of made-up outcomes with about these shares."""
    rng = random.Random(f"{editor} {at_once}")
    shares = {ACROSS: locality, UP: generality, "locality_text": 0.5}
    found = []
    for number in range(cases):
        results = tuple(
            ProbeResult(Probe(KINDS[name], None if name == "locality_text" else "x.png"), "", "", "", True, {name: float(rng.random() < share)}, case=str(number))
            for name, share in shares.items()
        )  # fmt: skip
        found.append(Outcome(str(number), results, rng.random(), None, rng.randrange(10**6), rng.randrange(10**8), at_once=at_once))  # fmt: skip
    return report_of(editor, "a model", found, 1.0, at_once)


NAMES = ("MMNeurons", "Margin", "FT", "LoRA", "ROME", "MEMIT", "FiNE", "MMNeurons:scorer=random", "Noise")
REPORTS = [report(name, 1 - 0.07 * i, 1 - 0.1 * i, n) for n in (1, 100) for i, name in enumerate(NAMES)]


def test_the_table_has_the_reports_figures() -> None:
    head, *rows = comparison(REPORTS)
    assert head == ["", *MEASURES, *COSTS.values()] and [row[0] for row in rows] == [one.name for one in REPORTS]
    for row, one in zip(rows, REPORTS, strict=True):
        cells = dict(zip(head, row, strict=True))
        assert {n: c for n, c in cells.items() if n in one.metrics} == {n: str(e) for n, e in one.metrics.items()}
        assert cells["reliability"] == "–" and math.isclose(float(cells["s per edit"]), one.info["seconds_per_edit"], rel_tol=0.01)  # fmt: skip
        assert cells["memory"] == bytes_text(one.info["peak_bytes"])
        assert cells["patch"] == bytes_text(one.info["patch_bytes"])
    assert rows[len(NAMES)][0] == "MMNeurons, 100 at once"
    assert len(comparison_text(REPORTS).splitlines()) == 1 + len(REPORTS)


def test_the_csv_has_them_in_full(tmp_path: Path) -> None:
    write_comparison(tmp_path / "c.csv", REPORTS)
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    for row, one in zip(rows, REPORTS, strict=True):
        for name, e in one.metrics.items():
            assert [float(row[f"{name}{end}"]) for end in ("", "_low", "_high")] == [e.value, e.low, e.high]
        assert [float(row[name]) for name in COSTS] == [one.info[name] for name in COSTS]
        assert row["report"] == one.name and int(row["at_once"]) == one.info["at_once"] and row["failures"] == "0"
        assert row["leakage"] == row["reliability_low"] == ""


def test_costs_are_means_over_edits_and_memory_the_most() -> None:
    found = [Outcome("a", (), 1.0, None, 10, 7), Outcome("b", (), 3.0, "no", 0, 5)]
    info = report_of("e", "m", found, 9.0).info
    told = {name: info[name] for name in (*COSTS, "seconds", "failures", "edits_per_patch")}
    assert told == {"seconds_per_edit": 2, "patch_bytes": 5, "peak_bytes": 7, "seconds": 9, "failures": {"b": "no"}, "edits_per_patch": 1}  # fmt: skip


def points(axes: Any) -> list[tuple[float, float, float, float]]:
    """What is drawn in a panel: value and interval ends, across and up."""
    drawn = []
    for container in axes.containers:
        mark, _, (across, up) = container
        ((x,), (y,)) = mark.get_data()
        ((left, _), (right, _)), ((_, low), (_, high)) = across.get_segments()[0], up.get_segments()[0]
        drawn.append((x, y, *(round(float(end), 9) for end in (left, right, low, high))))
    return drawn


def test_every_report_is_a_point_with_its_intervals() -> None:
    figure = comparison_figure(REPORTS, "a model")
    panels = figure.axes
    assert len(panels) == 4  # as many edits at once in a column; below, the corner of the good ones
    for n, column in ((1, panels[::2]), (100, panels[1::2])):
        wanted = []
        for one in (one for one in REPORTS if one.info["at_once"] == n):
            x, y = one.metrics[ACROSS], one.metrics[UP]
            wanted.append((x.value, y.value, *(round(end, 9) for end in (x.low, x.high, y.low, y.high))))
        assert all(points(axes) == wanted for axes in column)
    assert all(axes.get_xlim()[0] < CORNER < 1 < axes.get_xlim()[1] for axes in panels)
    good = [report(name, 0.99, 0.97) for name in NAMES[:3]]
    assert len(comparison_figure(good).axes) == 1


def test_editors_look_the_same_in_all_panels_and_unlike_each_other() -> None:
    looks: dict[int, set[Any]] = {}
    figure = comparison_figure(REPORTS)
    for axes in figure.axes:
        for number, container in enumerate(axes.containers):
            looks.setdefault(number, set()).add((container[0].get_color(), container[0].get_marker()))
    assert [len(one) for one in looks.values()] == [1] * len(NAMES)
    assert len(set.union(*looks.values())) == len({mark for one in looks.values() for _, mark in one}) == len(NAMES)


def test_no_text_lies_on_another_or_outside() -> None:
    figure = comparison_figure(REPORTS, "a model")
    assert Image.open(io.BytesIO(png(figure))).width > 1000
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*NAMES]
    boxes = [text.get_window_extent(renderer) for text in legend.get_texts()]
    boxes += [text.get_window_extent(renderer) for text in figure.texts if text.get_text()]
    boxes += [axes.title.get_window_extent(renderer) for axes in figure.axes]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    edge = legend.get_window_extent(renderer)
    assert not any(edge.overlaps(axes.get_tightbbox(renderer)) for axes in figure.axes)


def test_reports_without_one_of_the_metrics_are_left_out_of_the_figure() -> None:
    bare = EditReport("bare", "m", (), {"editor": "bare", "at_once": 1})
    figure = comparison_figure([bare, REPORTS[0]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MMNeurons"]
    assert png(comparison_figure([bare]))


def test_a_page_shows_the_table_only_where_there_is_one(tmp_path: Path) -> None:
    shown = [EditReport(f"<b>{i}", "m", (), REPORTS[0].info) for i in range(2)]
    write_report(tmp_path / "a.html", shown, compared=shown, plot=b"not really")
    write_report(tmp_path / "b.html", shown)
    a, b = ((tmp_path / name).read_text() for name in ("a.html", "b.html"))
    assert "Side by side</h2>" in a and "&lt;b&gt;0</th>" in a and "bm90IHJlYWxseQ==" in a
    assert "Side by side</h2>" not in b and 'class="plot"' not in b


def test_a_figure_that_is_not_a_number_is_null_in_json(tmp_path: Path) -> None:
    result = ProbeResult(Probe("text_only", None), "", "", "", True, {"chair_i": 0.0}, {"chair_i": 0.0})
    with pytest.warns(RuntimeWarning):  # of no object
        EditReport("a", "b", (result,)).to_json(tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["metrics"]["chair_i"]["value"] is None and read["metrics"]["chair_i"]["n"] == 1


# Memory


def test_the_peak_of_memory_is_seen_though_it_is_given_back() -> None:
    n = 96 << 20
    with peak_memory(on_cuda=False) as peak:
        held = torch.ones(n, dtype=torch.uint8)
        held.add_(1)
        del held
    with peak_memory(on_cuda=False) as little:
        torch.ones(8)
    assert 0.9 * n < peak.above < 2 * n and 0 <= little.above < 0.2 * n


def test_on_cuda_the_allocator_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    used, most, reset = {0: 100, 1: 50}, {0: 130, 1: 50}, list[int]()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_allocated", used.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", most.__getitem__)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    with peak_memory(on_cuda=True) as peak:
        assert reset == [0, 1]
    assert peak.above == 30

"""A benchmark run: the same figures in one go, cut off and resumed, and split over processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mmedit
from mmedit.cases import EditCase
from mmedit.errors import OutputError, RequestError
from mmedit.evaluation.answers import Baselines
from mmedit.evaluation.bench import Outcome, hash_of, outcomes, report_of
from mmedit.evaluation.export import export_mmedit
from mmedit.evaluation.journal import Journal
from mmedit.evaluation.judge import ProbeResult
from mmedit.evaluation.sequential import curve, gaps_below, retention
from mmedit.processes import Processes
from mmedit.requests import EditRequest
from mmedit.testbed.benchmark import iconworld_cases

N = 3


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    """The first swaps of the benchmark, each with fewer probes."""
    kept = []
    for case in iconworld_cases(N):
        kinds: dict[str, int] = {}
        probes = [
            p for p in case.probes if kinds.setdefault(p.kind, 0) < 2 and not kinds.update({p.kind: kinds[p.kind] + 1})
        ]
        kept.append(EditCase(case.id, case.request, tuple(probes)))
    return kept


@pytest.fixture(scope="module")
def editor() -> mmedit.editors.MMNeurons:
    return mmedit.editors.MMNeurons.from_hparams("iconworld-llava")


def figures(found: list[Outcome]) -> list[tuple[str, tuple[ProbeResult, ...], str | None, int]]:
    return [(o.case, o.results, o.failure, o.patch_bytes) for o in found]


def test_a_run_that_stops_anywhere_goes_on_to_the_same_figures(
    vlm: mmedit.VisionLanguageModel, cases: list[EditCase], editor: mmedit.editors.MMNeurons, tmp_path: Path
) -> None:
    known = Baselines(vlm, tmp_path / "cache")
    whole = list(outcomes(vlm, cases, editor.execute, baselines=known))
    for stop in range(len(cases)):
        folder = tmp_path / str(stop)
        with Journal(folder, "run", {}) as journal:
            run = outcomes(vlm, cases, editor.execute, journal=journal, baselines=known)
            for _ in range(stop + 1):
                next(run)
            run.close()
        path = folder / "run.0.jsonl"
        path.write_bytes(path.read_bytes()[:-7])  # cut off in the middle of the last line
        executed: list[str] = []

        def counted(model: Any, request: EditRequest, executed: list[str] = executed) -> mmedit.Patch:
            executed.append(str(request.source))
            return editor.execute(model, request)

        with Journal(folder, "run", {}) as journal:
            resumed = list(outcomes(vlm, cases, counted, journal=journal, baselines=known))
        assert figures(resumed) == figures(whole) and len(executed) == len(cases) - stop
        assert report_of("a", "b", resumed, 0).metrics == report_of("a", "b", whole, 0).metrics


def test_processes_share_the_edits_and_find_the_same(
    vlm: mmedit.VisionLanguageModel, cases: list[EditCase], editor: mmedit.editors.MMNeurons, tmp_path: Path
) -> None:
    known = Baselines(vlm, tmp_path)
    whole = figures(list(outcomes(vlm, cases, editor.execute, baselines=known)))
    parts = [
        figures(list(outcomes(vlm, cases, editor.execute, baselines=known, processes=Processes(i, 2)))) for i in (0, 1)
    ]
    assert sorted(parts[0] + parts[1], key=lambda o: o[0]) == sorted(whole, key=lambda o: o[0])
    assert len(parts[0]) == 2 and len(parts[1]) == 1


def test_an_edit_that_cannot_be_made_is_a_failed_edit_not_a_gap(
    vlm: mmedit.VisionLanguageModel, cases: list[EditCase], tmp_path: Path
) -> None:
    def refuse(model: Any, request: EditRequest) -> mmedit.Patch:
        raise RequestError("no")

    (outcome,) = outcomes(vlm, cases[:1], refuse, baselines=Baselines(vlm, tmp_path))
    report = report_of("refuse", "", [outcome], 0)
    assert outcome.failure == "no" and outcome.patch_bytes == 0
    assert report.metrics["reliability"].value == 0 and report.metrics["locality_image"].value == 1
    assert report.metrics["kl_image"].value == 0 and report.info["failures"] == {cases[0].id: "no"}


def test_what_is_drawn_at_random_depends_on_seed_and_case_alone(vlm: mmedit.VisionLanguageModel, cases: list[EditCase], tmp_path: Path) -> None:  # fmt: skip
    drawn: list[float] = []

    def draw(model: Any, request: EditRequest) -> mmedit.Patch:
        drawn.append(torch.rand(()).item())
        raise RequestError("no")

    known = Baselines(vlm, tmp_path)
    for order in (cases, cases[::-1]):
        list(outcomes(vlm, order, draw, baselines=known, teacher_forcing=False))
    assert drawn[:N] == drawn[N:][::-1] and len(set(drawn)) == N
    list(outcomes(vlm, cases, draw, baselines=known, teacher_forcing=False, seed=1))
    assert drawn[-N:] != drawn[:N] and hash_of(0, "a") != hash_of(0, "b")


def test_outcomes_survive_json(vlm: mmedit.VisionLanguageModel, cases: list[EditCase], editor: mmedit.editors.MMNeurons, tmp_path: Path) -> None:  # fmt: skip
    for case, outcome in zip(
        cases, outcomes(vlm, cases, editor.execute, baselines=Baselines(vlm, tmp_path)), strict=True
    ):
        assert Outcome.from_dict(json.loads(json.dumps(outcome.to_dict())), case.probes) == outcome


def test_edits_that_pile_up(vlm: mmedit.VisionLanguageModel, cases: list[EditCase], editor: mmedit.editors.MMNeurons, tmp_path: Path) -> None:  # fmt: skip
    known = Baselines(vlm, tmp_path / "cache")
    first, again = cases[0], cases[0].request
    superseding = EditCase("again", EditRequest(again.images, again.target, str(again.source)), first.probes[:1])
    rows = [*cases, superseding]
    found = list(retention(vlm, rows, editor.execute, baselines=known))
    assert [(one.case, one.gap) for one in found if one.gap == 0] == [(case.id, 0) for case in rows]
    assert {one.gap for one in found} == {0, 1} and sum(one.gap == 1 for one in found) == len(rows) - 1
    assert all(result.right for result in found[0].results if result.probe.kind == "edit")
    assert not any(one.superseded for one in found)  # cat→dog then dog→cat: other sources

    other = EditCase("other", EditRequest(again.images, str(again.source), "kite"), first.probes[:1])
    on_base = {
        case.id: editor.execute(vlm, case.request) for case in (first, other)
    }  # live, the first would hide the source
    ids = {id(case.request): case.id for case in (first, other)}
    made = list(retention(vlm, [first, other], lambda model, request: on_base[ids[id(request)]], baselines=known))
    assert [(one.gap, one.superseded) for one in made] == [(0, False), (0, False), (1, True)]
    assert curve(made)[1][1:] == (0, 1)


def test_a_pile_goes_on_where_it_stopped(vlm: mmedit.VisionLanguageModel, cases: list[EditCase], editor: mmedit.editors.MMNeurons, tmp_path: Path) -> None:  # fmt: skip
    known = Baselines(vlm, tmp_path / "cache")
    whole = list(retention(vlm, cases, editor.execute, baselines=known))
    for _ in range(2):
        with Journal(tmp_path / "out", "run", {}) as journal:
            run = retention(vlm, cases, editor.execute, journal=journal, folder=tmp_path / "patches", baselines=known)
            for _ in range(3):
                next(run)
            run.close()
    with Journal(tmp_path / "out", "run", {}) as journal:
        assert (
            list(retention(vlm, cases, editor.execute, journal=journal, folder=tmp_path / "patches", baselines=known))
            == whole
        )


@pytest.mark.parametrize(("n", "gaps"), [(1, [0]), (2, [0, 1]), (11, [0, 1, 10]), (101, [0, 1, 10, 100])])
def test_gaps_are_powers_of_ten(n: int, gaps: list[int]) -> None:
    assert gaps_below(n) == gaps


Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, cases: list[EditCase]) -> Run:
    """Start `mmedit bench` on the cases, written as a file of records."""
    file = export_mmedit(cases, tmp_path / "records")

    def one(*extra: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        env = os.environ | {"MMEDIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = ["-m", "mmedit", "bench", str(file), "--format", "mmedit", "--json", *extra]
        return subprocess.Popen(
            [sys.executable, *launcher, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path
        )  # fmt: skip

    return one


def metrics(process: subprocess.Popen[str]) -> Any:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    result = json.loads(out[out.index("{") :])
    assert {"editor", "model", "n_edits", "seconds", "metrics"} <= set(result)
    return result["metrics"]


def test_killed_and_resumed_and_split_over_two_processes_the_figures_are_one(start: Run, tmp_path: Path) -> None:
    whole = metrics(start("-o", str(tmp_path / "whole")))
    journal = tmp_path / "cut" / "MMNeurons.0.jsonl"
    process = start("-o", str(tmp_path / "cut"))
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 2):
        time.sleep(0.005)  # until one edit is on disk
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "cut" / "report.html").exists()
    assert metrics(start("-o", str(tmp_path / "cut"))) == whole
    split = start("-o", str(tmp_path / "split"), launcher=("-m", "torch.distributed.run", "--nproc_per_node", "2"))
    assert metrics(split) == whole
    assert sorted(path.name for path in (tmp_path / "split").glob("*.jsonl")) == [
        "MMNeurons.0.jsonl",
        "MMNeurons.1.jsonl",
    ]
    refused = start("-o", str(tmp_path / "split"), "--seed", "1")
    assert "another seed" in refused.communicate()[1] and refused.returncode == 2


def test_another_run_s_folder_is_refused(
    vlm: mmedit.VisionLanguageModel, cases: list[EditCase], tmp_path: Path
) -> None:
    with Journal(tmp_path, "run", {"editor": "a"}):
        pass
    with pytest.raises(OutputError, match="another editor"):
        Journal(tmp_path, "run", {"editor": "b"})

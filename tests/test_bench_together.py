"""Edits at once: groups without contradictions, one patch for each, every case judged as if the others were right to be there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import mmedit
from mmedit.cases import EditCase
from mmedit.cli import app
from mmedit.data.benchmarks import load_cases
from mmedit.errors import RequestError
from mmedit.evaluation.answers import Baselines
from mmedit.evaluation.bench import Outcome, outcomes, report_of, wanted_swaps
from mmedit.evaluation.export import export_mmedit
from mmedit.evaluation.journal import Journal
from mmedit.evaluation.judge import State, judge
from mmedit.evaluation.metrics import all_replaced
from mmedit.evaluation.together import groups_of, joined, together
from mmedit.processes import Processes
from mmedit.requests import EditRequest
from mmedit.testbed.benchmark import iconworld_cases


def fewer(case: EditCase) -> EditCase:
    """The case with two probes of each kind."""
    kinds = [probe.kind for probe in case.probes]
    return replace(case, probes=tuple(p for i, p in enumerate(case.probes) if kinds[:i].count(p.kind) < 2))


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    """Four swaps of different sources; the target of one is the source of another."""
    chosen = [fewer(case) for case in iconworld_cases(4)]
    assert {case.request.target for case in chosen} & {case.request.source for case in chosen}
    return chosen


@pytest.fixture(scope="module")
def editor() -> mmedit.editors.MMNeurons:
    return mmedit.editors.MMNeurons.from_hparams("iconworld-llava")


@pytest.fixture
def known(vlm: mmedit.VisionLanguageModel, tmp_path: Path) -> Baselines:
    return Baselines(vlm, tmp_path / "cache")


def figures(found: Sequence[Outcome]) -> list[Any]:
    return [(o.case, o.results, o.failure, o.patch_bytes, o.at_once) for o in found]


# Groups

WORDS = st.sampled_from(["cat", "dog", "tree", "boat"])
SWAPS = st.lists(st.tuples(WORDS, WORDS).filter(lambda pair: pair[0] != pair[1]), max_size=30)


@given(SWAPS, st.integers(1, 8))
def test_no_group_has_two_targets_for_a_word_and_none_is_smaller_than_it_must_be(swaps: Any, n: int) -> None:
    cases = [EditCase(str(i), EditRequest(f"{i}.png", *swap), ()) for i, swap in enumerate(swaps)]
    groups = groups_of(cases, n)
    assert sorted(int(case.id) for group in groups for case in group) == list(range(len(cases)))
    for number, group in enumerate(groups):
        targets = {case.request.source: case.request.target for case in group}
        assert 1 <= len(group) <= n and all(targets[case.request.source] == case.request.target for case in group)
        assert [*map(int, (case.id for case in group))] == sorted(int(case.id) for case in group)
        for case in group:  # it found no place before
            for earlier in groups[:number]:
                there = [other for other in earlier if int(other.id) < int(case.id)]
                clash = any(
                    wanted_swaps(o).get(case.request.source, case.request.target) != case.request.target for o in there
                )  # type: ignore[arg-type]
                assert clash or len(there) == n
        requests = joined(group)
        assert len(requests) == len(targets)
        assert sorted(image for one in requests.values() for image in one.images) == sorted(
            f"{c.id}.png" for c in group
        )


def test_a_hundred_at_once_are_all_nouns_from_five_pictures() -> None:
    groups = groups_of(iconworld_cases(pictures=5), 100)
    assert [len(group) for group in groups] == [100] * 6
    for group in groups:
        requests = joined(group).values()
        assert len({one.source for one in requests}) == len(requests) == 20
        assert all(len(one.images) == 5 for one in requests)


# One patch for a group


def test_one_at_once_is_a_single_edit(
    vlm: mmedit.VisionLanguageModel, cases: list[EditCase], editor: mmedit.editors.MMNeurons, known: Baselines
) -> None:
    def moody(model: Any, request: Any) -> mmedit.Patch:
        (one,) = request if isinstance(request, list) else [request]
        if one is cases[1].request:
            raise RequestError("no")
        return editor.execute(model, request)

    single = list(outcomes(vlm, cases[:3], moody, baselines=known, teacher_forcing=False))
    alone = [one for found in together(vlm, groups_of(cases[:3], 1), moody, baselines=known) for one in found]
    assert figures(alone) == figures(single) and [bool(one.failure) for one in single] == [False, True, False]
    reports = [report_of("a", "b", found, 0) for found in (single, alone)]
    assert reports[0].metrics == reports[1].metrics and reports[0].info["failures"] == reports[1].info["failures"]


def test_a_group_is_one_patch_and_each_case_is_judged_beside_the_others(
    vlm: mmedit.VisionLanguageModel, cases: list[EditCase], editor: mmedit.editors.MMNeurons, known: Baselines
) -> None:
    patches: list[mmedit.Patch] = []

    def execute(model: Any, requests: list[EditRequest]) -> mmedit.Patch:
        patches.append(editor.execute(model, requests))
        return patches[-1]

    (found,) = together(vlm, groups_of(cases, 4), execute, baselines=known)
    (patch,) = patches
    assert len(patch.edits) == 4 and all(one.at_once == 4 and one.failure is None for one in found)
    swaps = {case.id: wanted_swaps(case) for case in cases}
    for case, outcome in zip(cases, found, strict=True):
        others = {k: v for other, pairs in swaps.items() if other != case.id for k, v in pairs.items()}
        (wanted,) = judge(vlm, case.probes, [State([patch], swaps[case.id], others)], known, teacher_forcing=False)
        assert [vars(r) | {"case": ""} for r in outcome.results] == [vars(r) for r in wanted]
        for result in outcome.results:
            if not result.probe.changing:
                assert result.expected == all_replaced(result.before, others)
    report = report_of("a", "b", found, 0, at_once=4)
    assert report.name == "a, 4 at once" and report.metrics["reliability"].value == 1
    assert report.info["patch_bytes"] == found[0].patch_bytes > 0 and report.info["edits_per_patch"] == 4


def test_pictures_of_one_swap_are_one_request_and_count_as_one_edit(
    vlm: mmedit.VisionLanguageModel, editor: mmedit.editors.MMNeurons, known: Baselines
) -> None:
    asked: list[list[EditRequest]] = []

    def execute(model: Any, requests: list[EditRequest]) -> mmedit.Patch:
        asked.append(requests)
        return editor.execute(model, requests)

    seen = [fewer(case) for case in iconworld_cases(2, pictures=2)]
    (found,) = together(vlm, groups_of(seen, 40), execute, baselines=known)
    assert [[len(one.images) for one in requests] for requests in asked] == [[2, 2]]
    assert [{result.case for result in one.results} for one in found] == [{seen[i - i % 2].id} for i in range(4)]
    again = [Outcome.from_dict(json.loads(json.dumps(o.to_dict())), c.probes) for o, c in zip(found, seen, strict=True)]
    assert again == found


def test_what_an_editor_refuses_is_left_out_of_the_group(
    vlm: mmedit.VisionLanguageModel, cases: list[EditCase], editor: mmedit.editors.MMNeurons, known: Baselines
) -> None:
    def moody(model: Any, requests: list[EditRequest]) -> mmedit.Patch:
        if any(one.source in refused for one in requests):
            raise RequestError(f"not {[one.source for one in requests if one.source in refused]}")
        return editor.execute(model, requests)

    refused: set[str | None] = {cases[1].request.source, cases[2].request.source}
    (found,) = together(vlm, groups_of(cases, 4), moody, baselines=known)
    assert [one.failure for one in found] == [
        None,
        f"not {[cases[1].request.source]}",
        f"not {[cases[2].request.source]}",
        None,
    ]
    (kept,) = together(vlm, groups_of([cases[0], cases[3]], 4), editor.execute, baselines=known)
    assert figures(found)[::3] == figures(kept)  # as if they had never been asked for
    for lost in found[1:3]:
        edited = [result for result in lost.results if result.probe.kind == "edit"]
        assert edited and not any(result.right for result in edited)
        assert all(
            result.scores.get("locality_text", 1) == 1 or result.before != result.after for result in lost.results
        )
    refused = {case.request.source for case in cases}
    (none,) = together(vlm, groups_of(cases, 4), moody, baselines=known)
    assert all(one.failure and one.patch_bytes == 0 for one in none)
    assert all(result.before == result.after for one in none for result in one.results)


def test_requests_that_fail_only_together_all_fail(
    vlm: mmedit.VisionLanguageModel, cases: list[EditCase], editor: mmedit.editors.MMNeurons, known: Baselines
) -> None:
    def alone(model: Any, requests: list[EditRequest]) -> mmedit.Patch:
        if len(requests) > 1:
            raise RequestError("one at a time")
        return editor.execute(model, requests)

    (found,) = together(vlm, groups_of(cases[:2], 2), alone, baselines=known)
    assert [one.failure for one in found] == ["one at a time"] * 2


# Going on, sharing, comparing


def test_a_run_that_stops_goes_on_to_the_same_figures_and_processes_share_the_groups(
    vlm: mmedit.VisionLanguageModel, cases: list[EditCase], editor: mmedit.editors.MMNeurons, known: Baselines, tmp_path: Path
) -> None:  # fmt: skip
    groups = groups_of(cases, 2)
    whole = [figures(found) for found in together(vlm, groups, editor.execute, baselines=known)]
    assert len(whole) == len(groups) == 2
    with Journal(tmp_path, "run", {}) as journal:
        run = together(vlm, groups, editor.execute, journal=journal, baselines=known)
        next(run)
        run.close()
    executed: list[Any] = []

    def counted(model: Any, requests: Any) -> mmedit.Patch:
        executed.append(requests)
        return editor.execute(model, requests)

    with Journal(tmp_path, "run", {}) as journal:
        resumed = [figures(found) for found in together(vlm, groups, counted, journal=journal, baselines=known)]
    assert resumed == whole and len(executed) == 1
    for i in (0, 1):
        (part,) = together(vlm, groups, editor.execute, baselines=known, processes=Processes(i, 2))
        assert figures(part) == whole[i]


def test_the_command_compares_editors_alone_and_at_once(cases: list[EditCase], tmp_path: Path) -> None:
    file, out = export_mmedit(cases[:2], tmp_path / "records"), tmp_path / "out"
    two = ["--editor", "MMNeurons", "--editor", "MMNeurons:scorer=random", "--at-once", "1", "--at-once", "2"]
    command = ["bench", str(file), "--format", "mmedit", "--no-teacher-forcing", *two, "-o", str(out)]

    def run(*options: str) -> str:
        result = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    told = json.loads(run("--json"), parse_constant=refuse)
    assert [(one["editor"], one["at_once"], one["edits_per_patch"]) for one in told] == [
        ("MMNeurons", 1, 1), ("MMNeurons:scorer=random", 1, 1), ("MMNeurons", 2, 2), ("MMNeurons:scorer=random", 2, 2),
    ]  # fmt: skip
    again = json.loads(run("--json"))
    assert [one["metrics"] for one in again] == [one["metrics"] for one in told]
    assert [one["seconds_per_edit"] for one in again] == [one["seconds_per_edit"] for one in told]
    table = run()[-2000:].splitlines()
    assert table[-1].startswith("MMNeurons:scorer=random, 2 at once")
    rows = (out / "comparison.csv").read_text().splitlines()
    assert len(rows) == 5 and (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert "MMNeurons, 2 at once" in page and 'class="plot" src="data:image/png' in page
    assert page.count('name="report"') == (out / "report-2-at-once.html").read_text().count('name="report"') == 2


def test_the_command_piles_edits_up(cases: list[EditCase], tmp_path: Path) -> None:
    """All edits live, one after the other: the curve as JSON, CSV and picture, the patches beside it, the same when run again."""
    file, out = export_mmedit(cases[:2], tmp_path / "records"), tmp_path / "out"
    command = ["bench", str(file), "--format", "mmedit", "--sequential", "-o", str(out)]
    first, again = (CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False) for _ in range(2))
    told = json.loads(first.stdout)
    assert first.exit_code == 0 and json.loads(again.stdout) == told
    assert (told[0]["editor"], told[0]["n_edits"], told[0]["failures"]) == ("MMNeurons", 2, 0)
    assert [(row["further_edits"], row["edits"]) for row in told[0]["retention"]] == [(0, 2), (1, 1)]
    assert told[0]["retention"][0]["metrics"]["reliability"]["value"] == 1
    rows = (out / "MMNeurons-sequential.csv").read_text().splitlines()
    assert rows[0].startswith("further_edits,metric,value") and {row[0] for row in rows[1:]} == {"0", "1"}
    assert (out / "MMNeurons-sequential.png").read_bytes().startswith(b"\x89PNG")
    assert len([*(out / "MMNeurons-sequential-patches").glob("*.safetensors")]) == 2
    words = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    assert "0 of 2 could not be made" in words and "after 1 further edits (1 edits, 0 superseded)" in words


def test_the_command_writes_a_benchmark_for_others(tmp_path: Path) -> None:
    """`--export` writes IconWorld's cases in MMEdit's format, which reads back as the same edits, and makes none."""
    command = ["bench", "iconworld", "--limit", "2", "--export", str(tmp_path / "records")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0 and result.stdout.startswith("2 edits written to")
    (file,) = (tmp_path / "records").glob("*.json")
    loaded = load_cases(file, "mmedit")
    assert not loaded.skipped
    assert [case.request.target for case in loaded.cases] == [case.request.target for case in iconworld_cases(2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at-once", "10", "--sequential"], "one after the other"),
        (["--hparams", "MMNeurons=nowhere"], "nowhere"),
        (["--hparams", "iconworld-llava", "--hparams", "auto"], "two sources"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("mmedit.cli.options.load_model")
    with pytest.raises(mmedit.errors.MmeditError, match=message):
        CliRunner().invoke(app, ["bench", "iconworld", *options], catch_exceptions=False)


def test_hyperparameters_for_one_editor_alone(tmp_path: Path) -> None:
    from mmedit.cli.bench import _hparams

    file = tmp_path / "mine.yaml"
    file.write_text("neurons_per_edit: 3\n")
    given = ["auto", f"MMNeurons={file}"]
    assert _hparams("MMNeurons", given, "iconworld-llava")["neurons_per_edit"] == 3
    assert _hparams("MMNeurons:neurons_per_edit=4", given, "iconworld-llava")["neurons_per_edit"] == 4
    assert set(_hparams("FiNE", given, "iconworld-llava").values()) == {"auto"}
    assert "auto" not in _hparams("FiNE", given[1:], "iconworld-llava").values()

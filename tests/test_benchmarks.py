"""The scripts of tests/benchmarks: fair timing, rows with the fields that are promised, and the laws that they check on the way."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

import mmedit

HERE = Path(__file__).parent / "benchmarks"
FIELDS = ["name", "ratio", "target", "met", "detail"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From the name of a script to its module, importable for this test alone."""
    monkeypatch.syspath_prepend(str(HERE))
    mine = {file.stem for file in HERE.glob("*.py")}
    for name in mine:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in mine:
        sys.modules.pop(name, None)


def test_ways_take_turns_forwards_and_backwards(script: Any) -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) for name in "abc"}
    runs = script("timing").in_turn(ways, 2, times={"b": 2})
    assert "".join(order) == "abc" + "abbc" + "cbba"
    assert {name: len(values) for name, values in runs.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_ratio_is_taken_round_by_round(script: Any) -> None:
    busy = {
        "quick": [1.0, 10.0, 1.0],
        "slow": [30.0, 30.0, 3.0],
    }  # the machine is busy from the middle of the first round on
    assert script("timing").times_of(busy, "slow", "quick") == 3.0


def test_a_target_is_met_up_to_and_including_it(script: Any) -> None:
    timing = script("timing")
    assert [timing.at_most("x", ratio, 2).met for ratio in (1.9, 2, 2.1)] == [True, True, False]
    assert [timing.at_least("x", ratio, 2).met for ratio in (1.9, 2, 2.1)] == [False, True, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here they can be run")
def test_rows_that_need_a_gpu_say_so_without_one(script: Any) -> None:
    rows = list(script("timing").rows_of(lambda vlm, repeats: iter(()), "locate", ("7b", "13b"), 1))
    assert [(row.name, row.ratio, row.met, row.detail) for row in rows] == [
        (f"locate, {name}", None, None, {"skipped": "needs a CUDA GPU"}) for name in ("7b", "13b")
    ]


def test_all_gathers_the_rows_of_scripts_and_says_which_failed(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    everything: ModuleType = script("all")
    row = dict(zip(FIELDS, ("a / b", 2.0, 3, True, {"wanted": "at most"})))
    (tmp_path / "good.py").write_text(f"print('a table'); print('''{json.dumps(row)}'''); print('[1]'); print('{{}}')")
    (tmp_path / "bad.py").write_text(f"print('''{json.dumps(row)}'''); raise SystemExit(3)")
    monkeypatch.setattr(everything, "HERE", tmp_path)
    assert list(everything.rows_of("good", [])) == [row]
    first, failed = everything.rows_of("bad", [])
    assert first == row
    assert list(failed) == FIELDS
    assert failed["met"] is False
    assert "exit 3" in failed["detail"]["failed"]
    assert everything.markdown([row, failed]).splitlines()[2:] == [
        "| a / b | 2 | at most 3 | yes |", f"| bad | {failed['detail']['failed']} |  | no |",
    ]  # fmt: skip


def test_all_writes_a_list_of_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [sys.executable, str(HERE / "all.py"), "--quick", "--only", "solving", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(file.read_text())
    assert [list(row) for row in rows] == [FIELDS]
    assert rows[0]["met"] == (rows[0]["ratio"] >= rows[0]["target"])
    assert rows[0]["detail"]["difference"] < 1e-2
    assert f"| {rows[0]['name']} | {rows[0]['ratio']:.3g} | at least 1000 |" in done.stdout


def test_all_runs_every_script_that_measures_speed(script: Any) -> None:
    others = {"all", "geometries", "timing", "swaps", "tune", "memory"}
    assert set(script("all").SCRIPTS) == {file.stem for file in HERE.glob("*.py")} - others


def test_the_authors_procedure_finds_the_same_neurons(vlm: mmedit.VisionLanguageModel, pictures: list[tuple[Image.Image, str, Any]], script: Any, tmp_path: Path) -> None:  # fmt: skip
    """Written another way, without any of mmedit's: stored matrices, all activations, no cache."""
    theirs = script("procedure").Procedure(vlm, tmp_path)
    theirs.prepare()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > 2 * 6 * 512 * len(vlm.architecture.w_u)
    for picture, _, _ in pictures[1:4]:
        ours = [ranking.neurons[:5] for ranking in mmedit.locate_nouns(vlm, picture)[0]]
        for cached in (False, True):
            found = [set(neurons[:5]) for neurons in theirs.locate(picture, cached)]
            assert found == [set(neurons) for neurons in ours]
    ids, activations = theirs._generate(pictures[1][0], use_cache=False)
    lengths = [step.shape[1] for step in activations[mmedit.Site(0)]]
    assert lengths == [lengths[0] + i for i in range(len(ids) + 1)], "every position of every step, without a cache"


def test_evaluating_at_once_has_the_numbers_of_the_loop(vlm: mmedit.VisionLanguageModel, script: Any) -> None:
    row, batches = script("evaluating").measure(vlm, 1, n_patches=2, n_pictures=3)
    assert row.detail["same_numbers"] == "6 of 6"
    assert row.detail["changed"] >= 2, "the pictures of both edits, or it would say nothing"
    assert row.met == (row.ratio >= 4)
    assert batches.target is None


def test_numbers_are_the_same_only_if_they_are(vlm: mmedit.VisionLanguageModel, pictures: list[tuple[Image.Image, str, Any]], script: Any) -> None:  # fmt: skip
    evaluating, patch = script("evaluating"), script("applying").patch_of(vlm)
    patch = replace(patch, edits=({"source": "cat", "target": "dog"},))
    result = mmedit.evaluate(vlm, patch, unrelated=pictures[1][0], cache=False).results[0]
    assert evaluating.same(
        result, replace(result, scores={name: score + 1e-6 for name, score in result.scores.items()})
    )
    assert not evaluating.same(result, replace(result, after=result.after + "."))
    assert not evaluating.same(result, replace(result, scores={**result.scores, "leakage": 0.5}))
    assert not evaluating.same(result, replace(result, scores={**result.scores, "another": 0.0}))


def test_applying_copying_and_loading_leave_the_model_as_it_was(vlm: mmedit.VisionLanguageModel, script: Any) -> None:
    rows = list(script("applying").measure(vlm, 1))
    assert [row.target for row in rows] == [10, 1000]
    assert mmedit.Stack.of(vlm).names == ()  # and the fixture compares every weight


def test_growth_is_an_exponent_and_is_drawn(vlm: mmedit.VisionLanguageModel, script: Any, tmp_path: Path) -> None:
    growth = script("growth")
    assert growth.exponent((1, 4, 16, 64), [5, 5, 1.0, 4.0]) == pytest.approx(1)
    assert growth.exponent((1, 250, 1000), [5, 1.0, 16.0]) == pytest.approx(2)
    sizes = {name: values[:2] for name, values in growth.SIZES.items()}
    rows = list(growth.measure(vlm, 1, sizes, tmp_path / "growth.png"))
    assert [set(row.detail["seconds"]) for row in rows] == [set(values) for values in sizes.values()]
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.width > picture.height

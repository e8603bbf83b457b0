"""Judging edits: counted on whole captions, always against the unedited model, which is captioned once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import mmedit
from mmedit.data.folders import picture_files
from mmedit.errors import ImageError, PatchError, RequestError
from mmedit.evaluation.metrics import all_replaced, is_swapped, says
from mmedit.patches.base import Base
from mmedit.testbed.benchmark import swap_cases
from mmedit.testbed.world import render


@pytest.fixture(scope="module")
def swap(trained: mmedit.VisionLanguageModel) -> dict[str, Any]:
    """A swap of the benchmark with its pictures and its patch."""
    for case in swap_cases("benchmark", 10, 4, 6):
        edited, related, unrelated = (
            [render(drawn)[0] for drawn in part] for part in ((case.edit,), case.related, case.unrelated)
        )
        if says(trained.caption(edited)[0], case.source) and not {case.source, case.target} & {
            "lorry",
            "cactus",
            "mushroom",
            "lighthouse",
            "robot",
        }:
            editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
            patch = editor.execute(trained, mmedit.EditRequest(edited, case.source, case.target))
            return {"case": case, "patch": patch, "edited": edited, "related": related, "unrelated": unrelated}
    raise AssertionError("no swap of one-token words")


def test_the_report_is_what_captions_by_hand_give(vlm: mmedit.VisionLanguageModel, swap: dict[str, Any]) -> None:
    case, pictures = swap["case"], swap["edited"] + swap["related"] + swap["unrelated"]
    before = [vlm.caption(picture)[0] for picture in pictures]
    with swap["patch"].applied(vlm):
        after = [vlm.caption(picture)[0] for picture in pictures]
    (report,) = mmedit.evaluate(
        vlm, swap["patch"], edited=swap["edited"], related=swap["related"], unrelated=swap["unrelated"]
    )
    assert [(c.before, c.after) for c in report.cases] == list(zip(before, after, strict=True))
    swapped = [is_swapped(*pair, case.source, case.target) for pair in zip(before, after, strict=True)]
    same = [old == new for old, new in zip(before, after, strict=True)]
    leaked = [says(new, case.target) and not says(old, case.target) for old, new in zip(before, after, strict=True)]
    assert report.counts() == {
        "reliability": (sum(swapped[:1]), 1), "generality": (sum(swapped[1:5]), 4), "locality": (sum(same[5:]), 6), "leakage": (sum(leaked[5:]), 6),
    }  # fmt: skip
    assert json.loads(json.dumps(report.to_dict()))["locality"]["count"] == sum(same[5:])
    assert f"generality {sum(swapped[1:5]) / 4:.3f}" in str(report)


def test_an_edit_that_does_nothing_is_not_called_a_success(
    vlm: mmedit.VisionLanguageModel, swap: dict[str, Any]
) -> None:
    (report,) = mmedit.evaluate(
        vlm, swap["patch"].scaled(0.0), edited=swap["edited"], related=swap["related"], unrelated=swap["unrelated"]
    )
    assert report.counts() == {"reliability": (0, 1), "generality": (0, 4), "locality": (6, 6), "leakage": (0, 6)}


def test_damage_is_seen_against_the_unedited_model(vlm: mmedit.VisionLanguageModel, swap: dict[str, Any]) -> None:
    """A framework that takes its baseline after the edit would report a locality of 1 here."""
    (report,) = mmedit.evaluate(vlm, swap["patch"].scaled(40.0), unrelated=swap["unrelated"])
    assert report.counts()["locality"][0] < 6


def test_k_patches_on_n_pictures_cost_k_plus_one_captions_each(
    vlm: mmedit.VisionLanguageModel, swap: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    caption = type(vlm).caption
    monkeypatch.setattr(
        type(vlm), "caption", lambda self, images, *rest: asked.append(len(images)) or caption(self, images, *rest)
    )
    reports = mmedit.evaluate(vlm, [swap["patch"], swap["patch"].scaled(0.0)], related=swap["related"])
    assert asked == [4, 4, 4] and len(reports) == 2


def test_there_must_be_an_unedited_model_and_something_to_judge(
    vlm: mmedit.VisionLanguageModel, swap: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match="0 pictures"):
        mmedit.evaluate(vlm, swap["patch"])
    with swap["patch"].applied(vlm), pytest.raises(RequestError, match="live patches"):
        mmedit.evaluate(vlm, swap["patch"], related=swap["related"])
    site, rows = mmedit.Site(0), torch.zeros(1, 128)
    nameless = mmedit.Patch({site: (torch.tensor([1]), rows)}, {site: rows}, Base.of(vlm))
    with pytest.raises(PatchError, match="does not say what it swaps"):
        mmedit.evaluate(vlm, nameless, related=swap["related"])


def test_several_swaps_are_replaced_at_once() -> None:
    assert all_replaced("a Cat, a dog and a catfish", {"cat": "dog", "dog": "cat"}) == "a dog, a cat and a catfish"
    assert all_replaced("a red fox", {"fox": "cat", "red fox": "dog"}) == "a dog"


def test_folders_stand_for_their_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    assert [path.name for path in picture_files([tmp_path, tmp_path / "b.png"])] == ["a.jpg", "b.png", "b.png"]
    for place, words in ((tmp_path / "empty", "without pictures"), (tmp_path / "none", "no such picture or folder")):
        with pytest.raises(ImageError, match=words):
            picture_files(place)


def test_the_command_line_judges(
    vlm: mmedit.VisionLanguageModel,
    swap: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mmedit.cli import main

    for kind in ("edited", "related", "unrelated"):
        (tmp_path / kind).mkdir()
        for i, picture in enumerate(swap[kind]):
            picture.save(tmp_path / kind / f"{i}.png")
    swap["patch"].save(tmp_path / "p.safetensors")
    options = [text for kind in ("edited", "related", "unrelated") for text in (f"--{kind}", str(tmp_path / kind))]
    reports = mmedit.evaluate(
        vlm, swap["patch"], edited=swap["edited"], related=swap["related"], unrelated=swap["unrelated"]
    )
    for extra in (["--json"], ["--page", str(tmp_path / "page.html")]):
        monkeypatch.setattr("sys.argv", ["mmedit", "eval", str(tmp_path / "p.safetensors"), *options, *extra])
        with pytest.raises(SystemExit) as stopped:
            main()
        out = capfd.readouterr().out
        assert not stopped.value.code
        if extra == ["--json"]:
            assert json.loads(out)[0]["generality"]["count"] == reports[0].counts()["generality"][0]
        else:
            assert str(reports[0]) in out and (tmp_path / "page.html").read_text().count("data:image/png") == 11
    monkeypatch.setattr(
        "sys.argv", ["mmedit", "eval", str(tmp_path / "p.safetensors"), "--related", str(tmp_path / "none")]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "no such picture or folder" in capfd.readouterr().err

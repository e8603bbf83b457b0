"""What the unedited model says: asked once, kept by content, never taken from another model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mmedit
from mmedit.cases import Probe
from mmedit.evaluation.answers import Baselines, batches_of, free_answers
from mmedit.models.fingerprint import fingerprint
from mmedit.requests import Prompt

FACT = Prompt("Is a cat a toy?")


@pytest.fixture
def probes(pictures: list[Any]) -> list[Probe]:
    shown = [Probe("unrelated", picture) for picture, _, _ in pictures[:5]]
    return [
        *shown,
        Probe("text_only", None, FACT),
        Probe("related", pictures[0][0], Prompt("What is the ground?")),
        shown[0],
    ]


def test_answers_are_those_of_one_call_each_in_order(vlm: mmedit.VisionLanguageModel, probes: list[Probe]) -> None:
    alone = [vlm.generate(probe.image, probe.prompt)[0] for probe in probes]
    assert free_answers(vlm, probes, batch_size=3) == alone == Baselines(vlm, False).answers(probes, 2)


def test_every_probe_is_in_one_batch_and_pictures_are_apart_from_text(probes: list[Probe]) -> None:
    for size in (1, 2, 3, 100):
        batches = list(batches_of(probes, size))
        assert sorted(i for batch in batches for i in batch) == list(range(len(probes)))
        assert all(0 < len(batch) <= size and len({probes[i].image is None for i in batch}) == 1 for batch in batches)


def test_the_bar_comes_to_its_end(vlm: mmedit.VisionLanguageModel, probes: list[Probe], tmp_path: Path) -> None:
    class Count:
        n = 0

        def update(self, n: int = 1) -> None:
            self.n += n

    for _ in range(2):  # the second time all are known
        bar = Count()
        Baselines(vlm, tmp_path).answers(probes, 3, bar)
        assert bar.n == len(probes)


def test_what_is_known_is_not_asked_again(vlm: mmedit.VisionLanguageModel, probes: list[Probe], tmp_path: Path) -> None:
    first = Baselines(vlm, tmp_path)
    said = first.answers(probes, 8)
    assert first.generated == len(probes) - 1  # one of them twice
    later = Baselines(vlm, tmp_path)
    assert later.answers(probes, 8) == said and later.generated == 0
    assert later.answers([*probes, Probe("text_only", None, Prompt("Is snow a colour?"))], 8)[:-1] == said
    assert later.generated == 1


def test_the_same_picture_is_known_however_it_is_given(
    vlm: mmedit.VisionLanguageModel, pictures: list[Any], tmp_path: Path
) -> None:
    pictures[0][0].save(tmp_path / "a.png")
    Baselines(vlm, tmp_path / "cache").answers([Probe("edit", pictures[0][0])])
    later = Baselines(vlm, tmp_path / "cache")
    later.answers([Probe("related", tmp_path / "a.png"), Probe("edit", str(tmp_path / "a.png"))])
    assert later.generated == 0
    pictures[1][0].save(tmp_path / "a.png")  # another picture under the same name is another picture
    later.answers([Probe("related", tmp_path / "a.png")])
    assert later.generated == 1


def test_a_model_with_one_other_bit_finds_nothing(
    vlm: mmedit.VisionLanguageModel, probes: list[Probe], tmp_path: Path
) -> None:
    Baselines(vlm, tmp_path).answers(probes)
    before = fingerprint(vlm)
    weight = vlm.architecture.w_out(mmedit.Site(3)).weight
    bits = weight.data.view(torch.int32)
    bits[5, 7] ^= 1
    try:
        assert fingerprint(vlm) != before
        other = Baselines(vlm, tmp_path)
        other.answers(probes)
        assert other.generated == len(probes) - 1
    finally:
        bits[5, 7] ^= 1
    assert fingerprint(vlm) == before


def test_live_patches_are_another_model(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest) -> None:
    before = fingerprint(vlm)
    with mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat).applied(vlm):
        assert fingerprint(vlm) != before
    assert fingerprint(vlm) == before


def test_another_process_finds_the_same_model(vlm: mmedit.VisionLanguageModel) -> None:
    vlm.caption([__import__("PIL.Image").Image.new("RGB", (8, 8))] * 2)  # sets the tokenizer's padding
    code = "import mmedit; from mmedit.models.fingerprint import fingerprint; print(fingerprint(mmedit.load('iconworld-llava')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint(vlm)


@pytest.mark.parametrize("damage", ["garbage", "unwritable"])
def test_a_cache_that_does_not_work_costs_a_warning_and_nothing_else(
    vlm: mmedit.VisionLanguageModel, probes: list[Probe], tmp_path: Path, damage: str
) -> None:
    right = Baselines(vlm, False).answers(probes)
    if damage == "garbage":
        (tmp_path / "answers.sqlite").write_bytes(b"not a database" * 100)
    else:
        (tmp_path / "file").touch()
    folder = tmp_path if damage == "garbage" else tmp_path / "file" / "below"
    with pytest.warns(UserWarning, match="baselines are not kept"):
        assert Baselines(vlm, folder).answers(probes) == right


def test_weights_that_cannot_be_read_have_no_fingerprint(untrained: mmedit.VisionLanguageModel) -> None:
    untrained.model.to("meta")
    assert fingerprint(untrained) is None


def test_the_cache_s_place_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mmedit.evaluation.answers import default_folder

    monkeypatch.setenv("MMEDIT_CACHE", str(tmp_path / "a"))
    assert default_folder() == tmp_path / "a"
    monkeypatch.delenv("MMEDIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_folder() == tmp_path / "b" / "mmedit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "mmedit"

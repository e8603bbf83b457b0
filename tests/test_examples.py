"""The examples run as they stand, on the shipped model, and write what they say."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

import mmedit
from mmedit.testbed.benchmark import iconworld_cases

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs an example with some arguments; gives the folder that it was told to write to, and what it printed."""

    def run(name: str, *args: object) -> tuple[Path, str]:
        folder = tmp_path / "written" / name
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args), "-o", str(folder)])
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert {path.name for path in tmp_path.iterdir()} == {"written"} | kept, "it writes nowhere else"
        return folder, capsys.readouterr().out

    kept = {path.name for path in tmp_path.iterdir()}
    return run


def test_practitioner(run, vlm: mmedit.VisionLanguageModel, cat_file: Path, pictures: list) -> None:  # type: ignore[no-untyped-def,type-arg]
    others = [cat_file.parent / f"other {i}.png" for i in range(2)]
    for file, (picture, _, _) in zip(others, [p for p in pictures if "cat" not in p[1]], strict=False):
        picture.save(file)
    folder, out = run("practitioner", "--edit", cat_file, "--related", cat_file, "--unrelated", *others)
    assert "reliability" in out and "locality_image" in out
    patch = mmedit.Patch.load(folder / "cat-to-dog.safetensors")
    with patch.applied(vlm):
        wanted = vlm.caption(cat_file)[0]
    assert wanted == vlm.caption(cat_file)[0].replace("cat", "dog")
    baked = mmedit.load(folder / "checkpoint")
    assert baked.caption(cat_file) == [wanted] and repr(wanted) in out
    with mmedit.Patch.from_lora(folder / "adapter", vlm).applied(vlm):
        assert vlm.caption(cat_file) == [wanted]
    assert wanted in (folder / "report.html").read_text()


def test_practitioner_on_its_own_pictures(run, vlm: mmedit.VisionLanguageModel) -> None:  # type: ignore[no-untyped-def]
    folder, out = run("practitioner", "--source", "boat", "--target", "kite")
    assert mmedit.Patch.load(folder / "boat-to-kite.safetensors").name == "boat→kite"
    assert "generality_image" in out and "kite" in out.splitlines()[-1]


def test_researcher(run, vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:  # type: ignore[no-untyped-def]
    folder, out = run("researcher", "--image", cat_file, "-n", 2)
    caption = vlm.caption(cat_file)[0]
    for noun in ("cat", caption.split()[-1]):
        ranking = mmedit.NeuronRanking.load(folder / f"{noun}.json")
        assert ranking.neurons == mmedit.locate_word(vlm, cat_file, noun, k=10).neurons
        assert str(ranking.neurons[0]) in out
        with Image.open(folder / f"{noun}-focus.png") as drawn, Image.open(cat_file) as picture:
            assert drawn.size == picture.size and drawn.convert("RGB").tobytes() != picture.convert("RGB").tobytes()
    assert out.startswith(repr(caption)) and out.count("with noise on the best 5") == len(
        list(folder.glob("*-focus.png"))
    )
    with (folder / "layers.csv").open() as file:
        rows = list(csv.reader(file))
    counts = [(int(layer), int(n)) for method, k, layer, n in rows[1:] if (method, k) == ("contribution (ours)", "10")]
    assert [layer for layer, _ in counts] == list(range(vlm.architecture.n_layers))
    assert all(f"\n  {layer:3} {n:4} " in out for layer, n in counts) and "noise on the located neurons" in out
    assert (folder / "perturb.csv").is_file() and (folder / "report.html").is_file()


def test_benchmark(run, vlm: mmedit.VisionLanguageModel) -> None:  # type: ignore[no-untyped-def]
    folder, first = run("benchmark", "-n", 1, "--editors", "MMNeurons")
    with (folder / "probes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 53
    swapped = {row["report"] for row in rows if row["kind"] == "edit" and row["right"] == "True"}
    assert swapped == {"MMNeurons"} < {row["report"] for row in rows}, "random neurons do nothing"
    assert (folder / "report.html").is_file()
    cases = folder.rename(folder.with_name("again")) / "mmedit" / "caption_eval_edit.json"
    (record,) = json.loads(cases.read_text())
    edit = iconworld_cases(1)[0].probes[0]
    assert record["pred"] == f"An image of {vlm.caption(edit.image, edit.prompt)[0]}"
    _, second = run("benchmark", "--editors", "MMNeurons", "--cases", cases)
    table = [line for line in first.splitlines() if line.startswith("MMNeurons")]
    assert len(table) == 2 and table == [line for line in second.splitlines() if line.startswith("MMNeurons")]


@pytest.mark.parametrize("name", ["practitioner", "researcher", "benchmark"])
def test_examples_are_short_and_say_how_they_are_run(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 65 and f"python examples/{name}.py" in text and "--model llava-hf/" in text

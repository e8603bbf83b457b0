"""Judging edits: source gone and target there, nothing else touched, always against the unedited model, which is asked once."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mmedit
from mmedit.cli import main
from mmedit.data.pictures import Pictured
from mmedit.errors import PatchError, RequestError
from mmedit.evaluation.metrics import all_replaced, is_swapped, says
from mmedit.evaluation.page_data import page_data
from mmedit.evaluation.report import EditReport, write_csv
from mmedit.patches.base import Base
from mmedit.printable import printable
from mmedit.requests import CAPTION_PROMPT
from mmedit.testbed.benchmark import swap_cases
from mmedit.testbed.world import render

QUESTION, ELSEWHERE, FACT = "What is in the picture?", "Where is it?", "What colour is the sky?"


@pytest.fixture(scope="module")
def swap(trained: mmedit.VisionLanguageModel) -> dict[str, Any]:
    """A swap of the benchmark with its pictures and its patch."""
    for case in swap_cases("benchmark", 10, 2, 3):
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
            return {"case": case, "patch": patch, "requests": edited, "related": related, "unrelated": unrelated}
    raise AssertionError("no swap of one-token words")


@pytest.fixture(scope="module")
def asked(swap: dict[str, Any]) -> dict[str, Any]:
    """All that can be asked."""
    pictures = {name: swap[name] for name in ("requests", "related", "unrelated")}
    return {**pictures, "text_only": [FACT], "rephrased": [QUESTION], "same_image": [ELSEWHERE]}


def count(report: EditReport, metric: str) -> tuple[int, int]:
    """How many of how many."""
    found = report.metrics[metric]
    return round(found.value * found.n), found.n


def test_the_report_is_what_answers_by_hand_give(
    vlm: mmedit.VisionLanguageModel, swap: dict[str, Any], asked: dict[str, Any]
) -> None:
    source, target = swap["case"].source, swap["case"].target
    pictures = swap["requests"] + swap["related"] + swap["unrelated"]
    questions = [(picture, CAPTION_PROMPT) for picture in pictures]
    questions += [(None, FACT), (pictures[0], QUESTION), (pictures[0], ELSEWHERE)]
    before = [vlm.caption(*question)[0] for question in questions]
    with swap["patch"].applied(vlm):
        after = [vlm.caption(*question)[0] for question in questions]
    report = mmedit.evaluate(vlm, swap["patch"], **asked, cache=False)
    assert [(r.before, r.after) for r in report.results] == list(zip(before, after, strict=True))
    kinds = ["edit"] + ["related"] * 2 + ["unrelated"] * 3 + ["text_only", "rephrased", "same_image"]
    assert [r.probe.kind for r in report.results] == kinds
    pairs = dict.fromkeys(kinds, ())
    for kind, old, new in zip(kinds, before, after, strict=True):
        pairs[kind] += ((old, new),)  # type: ignore[assignment]
    for kind, metric in (("edit", "reliability"), ("related", "generality_image"), ("rephrased", "generality_text")):
        said = [(old, new) for old, new in pairs[kind] if says(old, source)]
        swapped = [says(new, target) and not says(new, source) for _, new in said]
        assert count(report, metric) == (sum(swapped), len(said))
        exact = [is_swapped(old, new, source, target) for old, new in said]
        assert count(report, f"{metric}_exact") == (sum(exact), len(said))
    for kind, metric in (("unrelated", "locality_image"), ("text_only", "locality_text"), ("same_image", "locality_same_image")):  # fmt: skip
        assert count(report, metric) == (sum(old == new for old, new in pairs[kind]), len(pairs[kind]))
    left = pairs["unrelated"] + pairs["text_only"] + pairs["same_image"]
    assert count(report, "leakage") == (sum(says(new, target) and not says(old, target) for old, new in left), 5)
    assert count(report, "reliability") == (1, 1) and count(report, "generality_image")[1] > 0


def test_an_edit_that_does_nothing_is_not_called_a_success(
    vlm: mmedit.VisionLanguageModel, swap: dict[str, Any], asked: dict[str, Any]
) -> None:
    report = mmedit.evaluate(vlm, swap["patch"].scaled(0.0), **asked)
    values = {name: estimate.value for name, estimate in report.metrics.items()}
    expected = {
        **dict.fromkeys(("reliability", "reliability_exact", "generality_image", "generality_image_exact", "generality_text"), 0.0),
        **dict.fromkeys(("locality_image", "locality_text", "locality_same_image", "agreement_image", "locality_acc", "multimodal_locality_acc"), 1.0),
        "leakage": 0.0, "kl_image": 0.0, "kl_text": 0.0, "kl_same_image": 0.0,
    }  # fmt: skip
    assert {name: values[name] for name in expected} == expected


def test_damage_is_seen_against_the_unedited_model(vlm: mmedit.VisionLanguageModel, swap: dict[str, Any]) -> None:
    """A framework that takes its baseline after the edit would report a locality of 1 here."""
    report = mmedit.evaluate(vlm, swap["patch"].scaled(40.0), unrelated=swap["unrelated"])
    assert report.metrics["locality_image"].value < 1 and report.metrics["kl_image"].value > 0.1


def test_k_patches_on_n_probes_cost_k_plus_one_answers_each_and_k_the_next_time(
    vlm: mmedit.VisionLanguageModel, swap: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows: list[int] = []
    generate = type(vlm).generate_batch
    monkeypatch.setattr(
        type(vlm), "generate_batch",
        lambda self, inputs, *rest: rows.append(len(inputs["input_ids"])) or generate(self, inputs, *rest),
    )  # fmt: skip
    patches = [swap["patch"], swap["patch"].scaled(0.0)]
    first = mmedit.evaluate(vlm, patches, related=swap["related"], text_only=FACT, cache=tmp_path)
    assert sum(rows) == 3 * 3 and len(first) == 2
    rows.clear()
    again = mmedit.evaluate(vlm, patches, related=swap["related"], text_only=FACT, cache=tmp_path)
    assert sum(rows) == 2 * 3 and [r.to_dict() for r in again] == [r.to_dict() for r in first]


def test_several_patches_are_judged_as_if_alone(
    vlm: mmedit.VisionLanguageModel, swap: dict[str, Any], asked: dict[str, Any]
) -> None:
    patches = [swap["patch"].scaled(40.0), swap["patch"]]
    together = mmedit.evaluate(vlm, patches, **asked)
    assert [r.to_dict() for r in together] == [mmedit.evaluate(vlm, patch, **asked).to_dict() for patch in patches]


def test_there_must_be_an_unedited_model_and_something_to_judge(
    vlm: mmedit.VisionLanguageModel, swap: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match="nothing to judge"):
        mmedit.evaluate(vlm, swap["patch"])
    with pytest.raises(RequestError, match="but no request"):
        mmedit.evaluate(vlm, swap["patch"], related=swap["related"], rephrased=QUESTION)
    with swap["patch"].applied(vlm), pytest.raises(RequestError, match="live patches"):
        mmedit.evaluate(vlm, swap["patch"], related=swap["related"])
    site, rows = mmedit.Site(0), torch.zeros(1, 128)
    nameless = mmedit.Patch({site: (torch.tensor([1]), rows)}, {site: rows}, Base.of(vlm))
    with pytest.raises(PatchError, match="does not say what it swaps"):
        mmedit.evaluate(vlm, nameless, related=swap["related"])


def test_a_report_is_the_same_as_json_csv_and_page(
    vlm: mmedit.VisionLanguageModel, swap: dict[str, Any], asked: dict[str, Any], tmp_path: Path
) -> None:
    objects = [Pictured(image, objects=("house",), label=f'{i}, "\n.png') for i, image in enumerate(swap["unrelated"])]
    reports = mmedit.evaluate(vlm, [swap["patch"], swap["patch"].scaled(40.0)], **{**asked, "unrelated": objects})
    reports[1].to_json(tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text())
    assert told == json.loads(json.dumps(reports[1].to_dict()))
    assert told["metrics"] == {name: vars(e) for name, e in reports[1].metrics.items()} and "chair_s" in told["metrics"]
    write_csv(tmp_path / "both.csv", reports)
    with (tmp_path / "both.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    reports[0].to_csv(tmp_path / "first.csv")
    assert len((tmp_path / "first.csv").read_text().splitlines()) == 1 + len(reports[0].results)
    cases = [(report.name, case) for report in reports for case in report.to_dict()["cases"]]
    assert len(rows) == len(cases)
    for row, (name, case) in zip(rows, cases, strict=True):
        assert row["report"] == name and (row["before"], row["after"]) == (case["before"], case["after"])
        metrics = {metric: row[metric] for metric in reports[0].metrics | reports[1].metrics}
        assert {m: float(v) for m, v in metrics.items() if v} == pytest.approx(case["scores"])
    shown = page_data(reports)
    assert [r["right"] for r in shown["results"]] == [case["right"] for _, case in cases]


def test_several_swaps_are_replaced_at_once() -> None:
    assert all_replaced("a Cat, a dog and a catfish", {"cat": "dog", "dog": "cat"}) == "a dog, a cat and a catfish"
    assert all_replaced("a red fox", {"fox": "cat", "red fox": "dog"}) == "a dog"


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, trained: mmedit.VisionLanguageModel) -> Cli:
    monkeypatch.setattr("mmedit.cli.options.load_model", lambda *options: trained)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["mmedit", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return (stopped.value.code or 0, *capfd.readouterr())  # type: ignore[return-value]

    return run


@pytest.fixture
def place(swap: dict[str, Any], tmp_path: Path) -> Path:
    """A folder with patches, and with pictures as files, a list of them and in folders."""
    for kind in ("requests", "related", "unrelated"):
        (tmp_path / kind).mkdir()
        for i, picture in enumerate(swap[kind]):
            picture.save(tmp_path / kind / f"{i}.png")
    lines = [{"image": f"unrelated/{i}.png", "objects": ["house"]} for i in range(3)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    swap["patch"].save(tmp_path / "p.safetensors")
    swap["patch"].scaled(40.0).save(tmp_path / "damage.safetensors")
    return tmp_path


def test_the_command_line_judges(
    cli: Cli, vlm: mmedit.VisionLanguageModel, swap: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = ["--edited", place / "requests" / "0.png", "--related", place / "related" / "[0-3].png", "--unrelated", place / "list.jsonl"]  # fmt: skip
    prompts = ["--text-only", FACT, "--text-only", "Can a fish fly?", "--rephrased", QUESTION, "--same-image", ELSEWHERE]  # fmt: skip
    expected = mmedit.evaluate(
        vlm, swap["patch"], requests=place / "requests", related=place / "related", unrelated=place / "list.jsonl",
        text_only=[FACT, "Can a fish fly?"], rephrased=QUESTION, same_image=ELSEWHERE,
    )  # fmt: skip
    code, out, _ = cli(place / "p.safetensors", *pictures, *prompts, "--json")
    assert code == 0 and json.loads(out)[0]["metrics"] == expected.to_dict()["metrics"]
    code, out, _ = cli(place / "p.safetensors", *pictures, *prompts, "--page", place / "a.html", "--csv", place / "a.csv")  # fmt: skip
    assert code == 0 and str(expected) in out
    assert (place / "a.html").read_text().count("data:image/png") == 6
    assert len((place / "a.csv").read_text().splitlines()) == 1 + len(expected.results)
    monkeypatch.setenv("MMEDIT_CACHE", str(place / "cache"))
    code, out, _ = cli(place / "p.safetensors", *pictures, "--json", "--no-teacher-forcing", "--no-cache")
    metrics = json.loads(out)[0]["metrics"]
    assert code == 0 and "kl_image" not in metrics and metrics["locality_image"]["n"] == 3
    assert not (place / "cache").exists()
    cli(place / "p.safetensors", "--text-only", FACT, "--no-teacher-forcing")
    assert (place / "cache").exists()


def test_several_patches_stand_side_by_side_with_what_went_wrong(cli: Cli, place: Path) -> None:
    patches = [place / "p.safetensors", place / "damage.safetensors"]
    code, out, _ = cli(*patches, "--unrelated", place / "unrelated", "--page", place / "a.html", "--csv", place / "a.csv")  # fmt: skip
    with (place / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = [row for row in rows if row["right"] == "False"]
    assert code == 0 and len(rows) == 6 and wrong
    assert [row["report"].split(" (")[1] for row in rows[::3]] == [f"{patch})" for patch in patches]
    for row in wrong:
        assert f"{row['picture']}\n    before:   {row['before']}\n    after:    {row['after']}\n" in out
    assert out.count("before:") == len(wrong) and out.count("metric ") == 2
    table = out[out.rindex("locality_image") :].splitlines()
    assert len(table) == 3 and (place / "a.html").read_text().count('name="report"') == 2


@pytest.mark.parametrize(("option", "passes"), [("--no-teacher-forcing", 3), ("--teacher-forcing", 5)])
def test_the_bar_is_told_of_every_answer(
    cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch, option: str, passes: int
) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, total: int, **options: Any) -> None:
            self.total, self.n = total, 0
            bars.append(self)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None: ...

        def update(self, n: int = 1) -> None:
            self.n += n

    monkeypatch.setattr("tqdm.tqdm", Bar)
    asked = ["--edited", place / "related", "--unrelated", place / "unrelated", "--rephrased", QUESTION, "--same-image", ELSEWHERE, "--text-only", FACT]  # fmt: skip
    code, _, _ = cli(place / "p.safetensors", place / "damage.safetensors", *asked, option)
    (bar,) = (bar for bar in bars if bar.total == passes * (3 * 2 + 3 + 1))
    assert code == 0 and bar.n == bar.total


def test_everything_is_looked_at_before_a_model_is_loaded(
    cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mmedit.cli.options.load_model", load)
    (place / "cut.png").write_bytes((place / "related" / "0.png").read_bytes()[:-40])
    patch, good = place / "p.safetensors", ["--related", place / "related"]
    saved = patch.read_bytes()
    for arguments, words in [
        ([patch], "no pictures to ask about"),
        ([patch, "--rephrased", QUESTION, *good], "no pictures to ask about"),
        ([patch, "--related", place / "none"], "no such picture or folder"),
        ([patch, *good, "--unrelated", place / "cut.png"], "cut.png"),
        ([place / "none.safetensors", *good], "no such patch"),
        ([patch, *good, "--page", place / "none" / "a.html"], "cannot write"),
        ([patch, *good, "--csv", patch], "given twice"),
        ([patch, "--related", place / "list.jsonl", "--csv", place / "list.jsonl"], "given twice"),
        ([patch, *good, "--csv", place / "a", "--page", place / "a"], "given twice"),
        ([patch, *good, "--prefix", "A"], "--prefix goes with --prompt"),
        ([patch, *good, "--batch-size", "0"], "batch-size"),
    ]:
        code, out, err = cli(*arguments)
        assert code == 2 and words in err and not out and "Traceback" not in err, err
    assert patch.read_bytes() == saved and not list(place.glob("**/.*.part"))


def test_names_of_files_do_nothing_to_the_terminal(cli: Cli, place: Path) -> None:
    name = "\x1b[2J\x9b31m\u202e\n\udc80.png"
    (place / "unrelated" / "0.png").rename(place / name)
    code, out, err = cli(place / "damage.safetensors", "--unrelated", place / name, "--unrelated", place / "unrelated", "--page", place / "a.html", "--csv", place / "a.csv")  # fmt: skip
    assert code == 0 and not set(out + err) & {"\x1b", "\x9b", "\u202e"}
    code, out, _ = cli(place / "damage.safetensors", "--unrelated", place / name, "--json")
    assert code == 0 and json.loads(out)[0]["cases"][0]["picture"] == printable(name)
    code, out, err = cli(place / "p.safetensors", "--unrelated", place / f"x{name}")
    assert code == 2 and printable(name, keep="\n") in err and not set(err) & {"\x1b", "\x9b", "\u202e"}

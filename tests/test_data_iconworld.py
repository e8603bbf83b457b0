"""The benchmark of IconWorld: always the same, balanced, true to its pictures; and out in MMEdit's format and back."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import mmedit
from mmedit.cases import EditCase, Probe
from mmedit.data.benchmarks import load_cases
from mmedit.errors import DataError, ImageError, OutputError, RequestError
from mmedit.evaluation.answers import free_answers
from mmedit.evaluation.export import FILE, NEEDED, export_mmedit
from mmedit.evaluation.metrics import replaced, says
from mmedit.models.images import load_image
from mmedit.requests import CAPTION_PROMPT, EditRequest, Prompt
from mmedit.testbed import benchmark
from mmedit.testbed.benchmark import Drawing, iconworld_cases, right_answer, swap_cases
from mmedit.testbed.language import KIND_OF, PLURALS, caption, facts
from mmedit.testbed.world import COLOURS, NOUNS, SPLITS, Scene, render

CASES = iconworld_cases()
FACTS = {turn.prompt: turn.answer for turn in facts()}
COUNTS = {"edit": 1, "rephrased": 2, "related": 8, "question": 6, "same_image": 12, "unrelated": 16, "text_only": 8}


def of_kind(case: EditCase, *kinds: str) -> list[Probe]:
    return [probe for probe in case.probes if probe.kind in kinds]


def scenes(case: EditCase) -> list[Scene]:
    return list(dict.fromkeys(probe.image.scene for probe in case.probes if probe.image is not None))


def swap(case: EditCase) -> tuple[str, str]:
    assert case.request.source is not None
    return case.request.source, case.request.target


# The benchmark


def test_the_benchmark_is_fixed() -> None:
    """Whoever changes it makes all figures that were measured on it incomparable, and must say so."""
    told = [
        (case.id, *swap(case), p.kind, p.prompt.text, p.prompt.prefix, p.objects, p.label, p.answer, p.image and repr(p.image.scene))
        for case in CASES
        for p in case.probes
    ]  # fmt: skip
    assert hashlib.sha256(repr(told).encode()).hexdigest()[:16] == "867199bef30fc775"


def test_fewer_cases_are_the_first_of_all() -> None:
    def told(case: EditCase) -> list[Any]:
        return [case.id, [(p.kind, p.label, p.prompt, p.image and p.image.scene) for p in case.probes]]

    assert [told(case) for case in iconworld_cases(7)] == [told(case) for case in CASES[:7]]
    assert len(CASES) == 120 and len(iconworld_cases(999)) == 120
    for n, split in ((0, "benchmark"), (-1, "benchmark"), (1, "train"), (None, "test")):
        with pytest.raises(RequestError, match="no such benchmark"):
            iconworld_cases(n, split)


def test_every_noun_is_equally_often_source_and_target_and_each_round_has_all_sources() -> None:
    for cases in (CASES, iconworld_cases(split="validation")):
        swaps = [swap(case) for case in cases]
        assert len(set(swaps)) == len(swaps) and all(source != target for source, target in swaps)
        assert {*Counter(s for s, _ in swaps).values()} == {*Counter(t for _, t in swaps).values()} == {6}
        kinds = Counter((KIND_OF[source], KIND_OF[target]) for source, target in swaps)
        assert len(kinds) == 25 and all(n == (8 if source == target else 4) for (source, target), n in kinds.items())
        for start in range(0, 120, 20):
            turn = swaps[start : start + 20]
            assert {source for source, _ in turn} == {*NOUNS}
            assert 4 <= sum(KIND_OF[source] == KIND_OF[target] for source, target in turn) <= 10
    assert [swap(case) for case in CASES] != [swap(case) for case in iconworld_cases(split="validation")]


def test_a_case_has_its_probes_and_they_show_what_their_kinds_say() -> None:
    assert len({case.id for case in CASES}) == 120
    for case in CASES:
        source, target = swap(case)
        assert Counter(probe.kind for probe in case.probes) == COUNTS and not any(probe.answer for probe in case.probes)
        edit, *rephrased = of_kind(case, "edit", "rephrased")
        assert case.request.images == (edit.image,) and edit.prompt == case.request.prompt == CAPTION_PROMPT
        assert edit.objects == (source,) and len(edit.image.scene.things) == 1
        assert all(probe.image is edit.image for probe in rephrased)
        assert len({probe.prompt for probe in (edit, *rephrased)}) == 3
        for probe in of_kind(case, "edit", "related", "unrelated"):
            assert probe.prompt == CAPTION_PROMPT
            assert says(right_answer(probe), source) == (probe.kind != "unrelated")
        assert not any({source, PLURALS[source]} & set(right_answer(p).split()) for p in of_kind(case, "unrelated"))
        assert sum(target in (p.objects or ()) for p in of_kind(case, "unrelated")) >= 2
        assert all(p.objects == (p.image.scene.nouns if p.image else None) for p in case.probes)


def test_questions_are_answered_by_the_source_and_what_stays_is_not() -> None:
    for case in CASES:
        source, _ = swap(case)
        shown = [p.image for p in of_kind(case, "related") if len(p.objects or ()) == 2]
        assert len(shown) == 6
        for picture in shown:
            asked = [p for p in of_kind(case, "question", "same_image") if p.image is picture]
            answers = {p.kind: [right_answer(q) for q in asked if q.kind == p.kind] for p in asked}
            (other,) = set(picture.scene.nouns) - {source}
            assert answers["question"] == [source] and len(asked) == 3
            assert answers["same_image"][0] == other and answers["same_image"][1] in COLOURS
            assert [p.prompt.text for p in asked if p.kind == "same_image"][1] == f"What colour is the {other}?"
            assert len({p.prompt for p in asked}) == 3 and not any(says(p.prompt.text, source) for p in asked)


def test_facts_are_about_the_source_its_target_and_others() -> None:
    for case in CASES:
        source, target = swap(case)
        asked = [probe.prompt for probe in of_kind(case, "text_only")]
        assert len(set(asked)) == 8 and all(prompt.text in FACTS and not prompt.prefix for prompt in asked)
        about = [next((w for w in (source, target) if re.search(rf"\b{w}\b", p.text)), None) for p in asked]
        assert about == [None] * 3 + [target] * 2 + [source] * 3
        hard = {f"What is more than one {source} called?", f"What kind of thing is a {source}?"}
        assert hard <= {prompt.text for prompt in asked}
        assert sum(FACTS[prompt.text] in ("yes", "no") for prompt in asked) == 3


def test_no_scene_comes_twice_nor_where_others_are_drawn_from() -> None:
    drawn = [one for case in CASES for one in scenes(case)]
    others = [one for case in swap_cases("benchmark", 120) for one in (case.edit, *case.related, *case.unrelated)]
    assert len(drawn) == 120 * 25 and len({one.seed for one in drawn + others}) == len(drawn) + len(others)
    assert len({(one.ground, one.things) for one in drawn}) == len(drawn)
    assert all(SPLITS["benchmark"] + 10**6 <= one.seed < SPLITS["benchmark"] + 10**9 for one in drawn)
    validation = [one for case in iconworld_cases(3, "validation") for one in scenes(case)]
    assert all(SPLITS["validation"] <= one.seed < SPLITS["benchmark"] for one in validation)


def test_further_pictures_of_a_swap_are_cases_of_their_own_and_new() -> None:
    cases = iconworld_cases(pictures=5)
    assert len({case.id for case in cases}) == len(cases) == 600
    assert [(c.id, c.probes[0].label) for c in cases[::5]] == [(c.id, c.probes[0].label) for c in CASES]
    known = [one for case in CASES for one in scenes(case)]
    further = [one for i, case in enumerate(cases) if i % 5 for one in scenes(case)]
    assert len(further) == 480 and len({one.seed for one in known + further}) == len(known) + 480
    for i, case in enumerate(cases):
        assert swap(case) == swap(cases[i - i % 5]) and case.request.source in scenes(case)[0].nouns
        assert not i % 5 or [p.kind for p in case.probes] == ["edit", "rephrased", "rephrased"]
    with pytest.raises(RequestError, match="pictures at least 1"):
        iconworld_cases(1, pictures=0)


def test_pictures_are_drawn_when_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Scene] = []
    monkeypatch.setattr(benchmark, "render", lambda scene: drawn.append(scene) or render(scene))
    case = iconworld_cases(2)[1]
    assert not drawn
    picture = case.probes[0].image
    assert load_image(picture).tobytes() == render(picture.scene)[0].tobytes() == load_image(picture).tobytes()
    assert drawn == [picture.scene]


def test_right_answers_are_those_of_the_world() -> None:
    case = CASES[0]
    for probe in of_kind(case, "edit", "related", "unrelated", "rephrased"):
        assert right_answer(probe) == caption(probe.image.scene)
    assert all(right_answer(probe) == FACTS[probe.prompt.text] for probe in of_kind(case, "text_only"))
    stranger = Probe("edit", render(scenes(case)[0])[0])
    for probe in (stranger, Probe("text_only", None, Prompt("Who?")), Probe("edit", case.probes[0].image, Prompt("Who?"))):  # fmt: skip
        with pytest.raises(RequestError, match="no question of IconWorld"):
            right_answer(probe)


def test_the_shipped_model_understands_the_benchmark(vlm: mmedit.VisionLanguageModel) -> None:
    probes = [probe for case in (CASES[0], CASES[-1]) for probe in case.probes]
    said = [generation.text.strip() for generation in free_answers(vlm, probes, 64)]
    right = Counter(p.kind for p, text in zip(probes, said, strict=True) if text == right_answer(p))
    assert all(right[kind] >= 0.8 * 2 * n for kind, n in COUNTS.items()), right


# MMEdit's format


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_mmedit(CASES[:3], tmp_path_factory.mktemp("export") / "iconworld")


def pixels(image: Any) -> bytes | None:
    return None if image is None else load_image(image).tobytes()


def told(case: EditCase) -> list[Any]:
    """All that a case holds, its pictures as their pixels."""
    r = case.request
    return [
        case.id, r.source, r.target, r.prompt, [pixels(image) for image in r.images],
        [(p.kind, p.prompt, p.answer, p.objects, p.label, pixels(p.image)) for p in case.probes],
    ]  # fmt: skip


def test_what_is_written_is_read_back_whole(exported: Path) -> None:
    again = load_cases(exported, "mmedit")
    assert [told(case) for case in again.cases] == [told(case) for case in CASES[:3]] and not again.skipped
    assert exported.name == FILE and len(list((exported.parent / "images").iterdir())) == 3 * 25
    assert {path.name for path in exported.parent.iterdir()} == {FILE, "images"}


def test_cases_of_other_sources_come_back_too(tmp_path: Path, exported: Path) -> None:
    """Answers of a data set, no source, no prompt, several pictures, white space, words of any language."""
    image = exported.parent / json.loads(exported.read_text())[0]["image"]
    probes = [Probe(kind, image, Prompt(f" {kind} ?\n", "Ä "), "so ", ("cat", " "), "a/b ") for kind in NEEDED if kind != "text_only"]  # type: ignore[arg-type]  # fmt: skip
    probes += [Probe("text_only", None, Prompt("猫"), None), Probe("portability", None, Prompt("Q"), "A")]
    requests = [EditRequest([image, render(scenes(CASES[0])[1])[0]], None, "a dog", None), EditRequest(image, "cat", "dog", "What?")]  # fmt: skip
    cases = [EditCase(f"case {i}", request, tuple(probes)) for i, request in enumerate(requests)]
    again = load_cases(export_mmedit(cases, tmp_path / "out", lambda probe: "a cat"), "mmedit").cases
    assert [told(a)[5] for a in again] == [told(b)[5] for b in cases]
    assert [(a.id, a.request.source, a.request.target, len(a.request.images)) for a in again] == [("case 0", None, "a dog", 2), ("case 1", "cat", "dog", 1)]  # fmt: skip
    assert [a.request.prompt for a in again] == [None, Prompt("What?")]
    with pytest.raises(RequestError, match="no question of IconWorld"):
        export_mmedit(cases, tmp_path / "other")


def test_other_frameworks_find_mmedit_s_fields(exported: Path) -> None:
    """Read as EasyEdit's CaptionDataset does, and by our own loader without the key of our own."""
    records = json.loads(exported.read_text(encoding="utf-8"))
    assert len(records) == 3
    for record, case in zip(records, CASES, strict=False):
        source, target = swap(case)
        first = {kind: of_kind(case, kind)[0] for kind in NEEDED}
        for key, kind in (("image", "edit"), ("image_rephrase", "related"), ("m_loc", "unrelated")):
            assert pixels(exported.parent / record[key]) == pixels(first[kind].image)
        whole = {kind: f"{p.prompt.prefix} {right_answer(p)}".strip() for kind, p in first.items()}
        assert record["pred"] == whole["edit"] and record["alt"] == replaced(whole["edit"], source, target)
        assert says(record["pred"], source) and says(record["alt"], target) and not says(record["alt"], source)
        assert (record["loc_ans"], record["m_loc_a"]) == (whole["text_only"], whole["unrelated"])
        assert (record["src"], record["rephrase"]) == (first["edit"].prompt.text, first["rephrased"].prompt.text)
        assert (record["loc"], record["m_loc_q"]) == (first["text_only"].prompt.text, first["unrelated"].prompt.text)
        assert not re.search(rf"\b{source}|\b{target}", record["loc"] + record["m_loc_a"]), "far from the edit"
    plain = exported.with_name("plain.json")
    plain.write_text(json.dumps([{k: v for k, v in r.items() if k != "mmedit"} for r in records]))
    loaded = load_cases(plain, "mmedit")
    plain.unlink()
    assert [[p.kind for p in case.probes] for case in loaded.cases] == [["edit", "rephrased", "related", "text_only", "unrelated"]] * 3  # fmt: skip
    assert [case.request.target for case in loaded.cases] == [record["alt"] for record in records]


def test_pred_is_what_the_model_says_where_it_is_asked(tmp_path: Path) -> None:
    case = CASES[0]
    source, target = swap(case)
    (record,) = json.loads(export_mmedit([case], tmp_path / "out", lambda probe: f"one {source} for {probe.kind}").read_text())  # fmt: skip
    assert record["pred"] == f"An image of one {source} for edit" and record["alt"] == f"An image of one {target} for edit"  # fmt: skip
    assert record["loc_ans"] == f"one {source} for text_only"


def test_an_export_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    short = EditCase("short", CASES[1].request, CASES[1].probes[:4])
    gone = EditCase("gone", EditRequest(tmp_path / "none.png", "cat", "dog"), CASES[1].probes)
    for cases, error, words in (([CASES[0], short], DataError, "needs more probes"), ([CASES[0], gone], ImageError, "no such picture")):  # fmt: skip
        with pytest.raises(error, match=words):
            export_mmedit(cases, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(OutputError, match="this exists already"):
        export_mmedit(CASES[:1], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"version": None}, {"id": ""}, {"id": 3}, {"images": []}, {"images": ["a.png"]}, {"images": [{"image": "../x"}]}, {"source": 3}, {"source": "ball"},
        {"target": ""}, {"prompt": "x"}, {"prompt": {"text": "x"}}, {"probes": {}}, {"probes": [3]}, {"probes": None}, {"kind": "none"}, {"kind": "text_only"},
        {"image": 3}, {"image": "images/none.png"}, {"answer": 3}, {"objects": "cat"}, {"objects": [1]}, {"label": None},
    ],
    ids=str,
)  # fmt: skip
def test_our_own_key_is_checked_like_any_other_field(exported: Path, change: dict[str, Any]) -> None:
    records = json.loads(exported.read_text())
    own = records[1]["mmedit"]
    target = own["target"]
    (own if change.keys() <= own.keys() else own["probes"][0]).update(change)
    if change == {"source": "ball"}:
        own["source"] = target
    changed = exported.with_name("changed.json")
    changed.write_text(json.dumps(records))
    try:
        if change == {"id": ""}:
            assert load_cases(changed, "mmedit").skipped == {"`id` is empty": 1}
            return
        with pytest.raises((DataError, ImageError)) as caught:
            load_cases(changed, "mmedit")
        assert str(caught.value.where).startswith(f"{changed}[1]")
    finally:
        changed.unlink()


def test_two_cases_of_one_name_are_refused(exported: Path) -> None:
    records = json.loads(exported.read_text())
    twice = exported.with_name("twice.json")
    twice.write_text(json.dumps([records[0], records[0]]))
    with pytest.raises(DataError, match="two cases with the same id"):
        load_cases(twice, "mmedit")
    twice.unlink()


def test_a_drawing_is_a_picture(tmp_path: Path) -> None:
    drawing = Drawing(scenes(CASES[0])[0])
    drawing.save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").tobytes() == render(drawing.scene)[0].tobytes()

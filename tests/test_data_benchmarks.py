"""Benchmark files of MMEdit, VLKEB, ComprehendEdit and MMKE-Bench: read field by field as their own loaders do, strangers' or not."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmedit.cases import EditCase
from mmedit.data.benchmarks import FORMATS, Cases, load_cases
from mmedit.data.comprehendedit import TEMPLATES
from mmedit.data.records import MAX_TEXT
from mmedit.data.strangers import MAX_BYTES
from mmedit.errors import DataError, ImageError, MmeditError, RequestError
from mmedit.models.images import load_image
from mmedit.requests import Prompt

law = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
COLOURS = {
    "val/edit.jpg": (255, 0, 0),
    "val/kept.png": (0, 0, 255),
    "val/hop.png": (9, 9, 9),
    "val/again.png": (0, 255, 0),
}

VQA = {
    "src": "What sport can you use this for?", "pred": "motocross", "rephrase": "Which sport is this used in?", "alt": "riding",
    "image": "val/edit.jpg", "image_rephrase": "val/again.png", "loc": "nq question: who wrote emma", "loc_ans": "Jane Austen",
    "m_loc": "val/kept.png", "m_loc_q": "What is in the {box}?", "m_loc_a": "fruit",
}  # fmt: skip
CAPTION = VQA | {"src": "a photo of", "rephrase": "a photograph of", "alt": "a wooden cutting board topped with food"}
HOPS = [{"port_type": f"{n}-hop", "Q&A": {"Question": f"Q{n}?", "Answer": f"A{n}"}} for n in (1, 2, 4)]
VLKEB = VQA | {"port_new": HOPS}
ONE_HOP = VQA | {"port_new": [{"port_q": "Where is it made?", "port_a": "Kyoto", "port_edit_q": "Who makes it?", "port_edit_a": "Nintendo"}] * 2}  # fmt: skip
ENTITY = VLKEB | {
    "knowledge_type": "entity_level", "type_self": "human",
    **{key: f"{key}?" for key in ("rel_1", "rel_2", "m_rel_1", "m_rel_2")},
    **{key: key for key in ("rel_ans_1", "rel_2_ans", "m_rel_1_ans", "m_rel_ans_2")},
}  # fmt: skip
USER = ENTITY | {"knowledge_type": "user_specific", "one_hop_img": "val/hop.png"}
VISUAL = VLKEB | {
    "knowledge_type": "visual_knowledge", "one_hop_img": "val/hop.png", "image_rephrase_question": "And here?",
    "rel": "rel?", "rel_ans": "rel_ans", "m_rel": "m_rel?", "m_rel_ans": "m_rel_ans",
}  # fmt: skip
COMPREHEND = {
    "image": "val/edit.jpg", "question": "What is this bird called?", "rephrase": "What is the bird's name?", "answer": "parrot",
    "source": "GQA", "Category": "object recognition", "pid": 0, "img_topk": [1, 2], "ori_rt_img_topk": [3],
    "locality_prompt": "when does it come out", "locality_ground_truth": "in May", "multimodal_locality_image": "val/kept.png",
    "multimodal_locality_prompt": "What fruit?", "multimodal_locality_ground_truth": "an apple",
}  # fmt: skip
FILES = {"vqa": ("mmedit", VQA), "caption": ("mmedit", CAPTION), "multihop": ("vlkeb", VLKEB), "onehop": ("vlkeb", ONE_HOP), "entity": ("mmke", ENTITY), "user": ("mmke", USER), "visual": ("mmke", VISUAL), "comprehendedit": ("comprehendedit", COMPREHEND)}  # fmt: skip
PICTURES = {key for _, record in FILES.values() for key, value in record.items() if str(value) in COLOURS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "val").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (4, 4), colour).save(folder / name)
    return folder


def load(folder: Path, format: str, *records: Any, **options: Any) -> Cases:
    (folder / "records.json").write_text(json.dumps(records))
    return load_cases(folder / "records.json", format, **options)


def table(case: EditCase, folder: Path) -> list[tuple[str, str | None, str, str | None]]:
    """Kind, picture, prompt and answer of each probe."""
    assert not any(probe.prompt.prefix for probe in case.probes)
    return [
        (p.kind, None if p.image is None else str(p.image.relative_to(folder)), p.prompt.text, p.answer)
        for p in case.probes
    ]


def asked(text: str) -> str:
    return f"Question: {text} Short answer:"


# What each format says


@pytest.mark.parametrize(("name", "ask"), [("vqa", asked), ("caption", str)])
def test_mmedit_asks_as_easyedit_s_two_readers_do(folder: Path, name: str, ask: Any) -> None:
    format, r = FILES[name]
    (case,) = load(folder, format, r).cases
    assert (case.id, case.request.source, case.request.target) == ("0", None, r["alt"])
    assert case.request.prompt == Prompt(ask(r["src"])) and case.request.images == (folder / "val/edit.jpg",)
    assert table(case, folder) == [
        ("edit", "val/edit.jpg", ask(r["src"]), r["alt"]), ("rephrased", "val/edit.jpg", ask(r["rephrase"]), r["alt"]), ("related", "val/again.png", ask(r["src"]), r["alt"]),
        ("text_only", None, r["loc"], r["loc_ans"]), ("unrelated", "val/kept.png", "Question: What is in the {box}? Short answer:", "fruit"),
    ]  # fmt: skip
    assert [probe.label for probe in case.probes] == ["val/edit.jpg", "val/edit.jpg", "val/again.png", "", "val/kept.png"]  # fmt: skip
    assert all(probe.objects is None for probe in case.probes)
    assert load_image(case.probes[4].image).getpixel((0, 0)) == (0, 0, 255)


def test_vlkeb_asks_plainly_and_what_follows_in_steps(folder: Path) -> None:
    (case,) = load(folder, "vlkeb", VLKEB).cases
    rows = table(case, folder)
    assert [row[2] for row in rows[:5]] == [VQA[key] for key in ("src", "rephrase", "src", "loc", "m_loc_q")]
    assert rows[5:] == [("portability", "val/edit.jpg", f"Q{n}?", f"A{n}") for n in (1, 2, 4)]
    assert [probe.label for probe in case.probes[5:]] == [f"val/edit.jpg, {n}-hop" for n in (1, 2, 4)]
    plain = {key: value for key, value in VLKEB.items() if key != "port_new"}
    assert table(load(folder, "vlkeb", plain).cases[0], folder) == rows[:5]


def test_one_number_of_steps_may_be_chosen_and_records_without_are_left_out(folder: Path) -> None:
    plain = {key: value for key, value in VLKEB.items() if key != "port_new"}
    twice = VLKEB | {"port_new": HOPS + HOPS}
    loaded = load(folder, "vlkeb", VLKEB, plain, twice, VLKEB | {"port_new": HOPS[:1]}, hop=2)
    assert [(case.id, table(case, folder)[5:]) for case in loaded.cases] == [(i, [("portability", "val/edit.jpg", "Q2?", "A2")]) for i in ("0", "2")]  # fmt: skip
    assert loaded.skipped == {"no 2-hop question": 2}


def test_a_one_hop_record_has_its_own_second_edits(folder: Path) -> None:
    first, *seconds = load(folder, "vlkeb", ONE_HOP).cases
    assert len(table(first, folder)) == 5 and [case.id for case in seconds] == ["0.0", "0.1"]
    for case in seconds:
        request = case.request
        assert (request.images, request.source, request.target, request.prompt) == ((folder / "val/edit.jpg",), None, "Nintendo", Prompt("Who makes it?"))  # fmt: skip
        assert table(case, folder) == [("edit", "val/edit.jpg", "Who makes it?", "Nintendo"), ("portability", "val/edit.jpg", "Where is it made?", "Kyoto")]  # fmt: skip


@pytest.mark.parametrize(("record", "hop"), [(ENTITY, "val/edit.jpg"), (USER, "val/hop.png")])
def test_mmke_of_entities_and_users(folder: Path, record: dict[str, Any], hop: str) -> None:
    rows = table(load(folder, "mmke", record).cases[0], folder)
    assert rows[:5] == table(load(folder, "vlkeb", VQA).cases[0], folder)
    assert rows[5:11] == [
        ("question", None, "rel_1?", "rel_ans_1"), ("question", "val/edit.jpg", "m_rel_1?", "m_rel_1_ans"), ("related", "val/again.png", "m_rel_1?", "m_rel_1_ans"),
        ("question", None, "rel_2?", "rel_2_ans"), ("question", "val/edit.jpg", "m_rel_2?", "m_rel_ans_2"), ("related", "val/again.png", "m_rel_2?", "m_rel_ans_2"),
    ]  # fmt: skip
    assert rows[11:] == [("portability", hop, f"Q{n}?", f"A{n}") for n in (1, 2, 4)]


def test_mmke_of_visual_knowledge_asks_its_own_question_about_the_rephrased_picture(folder: Path) -> None:
    rows = table(load(folder, "mmke", VISUAL).cases[0], folder)
    assert rows[5:] == [
        ("question", None, "rel?", "rel_ans"), ("question", "val/edit.jpg", "m_rel?", "m_rel_ans"), ("related", "val/again.png", "And here?", "m_rel_ans"),
        *(("portability", "val/hop.png", f"Q{n}?", f"A{n}") for n in (1, 2, 4)),
    ]  # fmt: skip


@pytest.mark.parametrize("source", sorted(TEMPLATES))
def test_comprehendedit_asks_as_the_source_of_the_question_does(folder: Path, source: str) -> None:
    (case,) = load(folder, "comprehendedit", COMPREHEND | {"source": source.upper()}).cases

    def ask(text: str) -> str:
        return TEMPLATES[source].format(text)

    assert case.request.prompt == Prompt(ask("What is this bird called?")) and case.request.target == "parrot"
    assert table(case, folder) == [
        ("edit", "val/edit.jpg", ask("What is this bird called?"), "parrot"), ("rephrased", "val/edit.jpg", ask("What is the bird's name?"), "parrot"),
        ("text_only", None, "when does it come out", "in May"), ("unrelated", "val/kept.png", asked("What fruit?"), "an apple"),
    ], "and the answer of the text-only question is its answer, not the question again"  # fmt: skip


def test_comprehendedit_s_later_fields(folder: Path) -> None:
    later = {"T_G_qs": "Name?", "T_G_ans": "a parrot", "port_T_qs": "Do parrots fly?", "port_M_qs": "Does it fly?", "port_ans": "yes"}  # fmt: skip
    rows = table(load(folder, "comprehendedit", COMPREHEND | later).cases[0], folder)
    assert rows[4:] == [
        ("rephrased", "val/edit.jpg", asked("Name?"), "a parrot"), ("portability", "val/edit.jpg", asked("Does it fly?"), "yes"), ("portability", None, asked("Do parrots fly?"), "yes"),
    ]  # fmt: skip
    none = dict.fromkeys(later, "")
    assert len(load(folder, "comprehendedit", COMPREHEND | none).cases[0].probes) == 4


# What is left out


def test_what_the_formats_leave_out_is_counted(folder: Path) -> None:
    """E-VQA: any empty field; E-IC and VLKEB: `alt`, and what cannot be asked; an empty answer of what stays is none."""
    for key in VQA:
        loaded = load(folder, "mmedit", VQA, VQA | {key: ""}, VQA)
        if key == "src":  # no question mark: read as a caption's
            assert loaded.skipped == {"`src` is empty": 1}
        assert loaded.skipped == {f"`{key}` is empty": 1} and [case.id for case in loaded.cases] == ["0", "2"]
        for format, record in (("mmedit", CAPTION), ("vlkeb", VLKEB)):
            loaded = load(folder, format, record, record | {key: " \n"})
            kept = key in ("pred", "loc_ans", "m_loc_a")
            assert (len(loaded.cases), loaded.skipped) == ((2, {}) if kept else (1, {f"`{key}` is empty": 1}))
            if kept:
                assert all(p.answer is None or p.answer.strip() for p in loaded.cases[1].probes)
    loaded = load(folder, "comprehendedit", *[COMPREHEND | {"answer": ""}] * 3, COMPREHEND)
    assert str(loaded) == "1 edits, 3 left out: `answer` is empty" and loaded.cases[0].id == "3"


def test_a_file_of_which_nothing_is_left_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no record of this file.*`alt` is empty \(2\)"):
        load(folder, "vlkeb", VLKEB | {"alt": ""}, VLKEB | {"alt": ""})
    with pytest.raises(DataError, match=r"(?s)no record of this file.*an empty list"):
        load(folder, "vlkeb")


def test_pictures_that_are_not_there_are_an_error_or_left_out(folder: Path) -> None:
    missing = VLKEB | {"m_loc": "val/none.png"}
    with pytest.raises(ImageError, match="no such picture") as caught:
        load(folder, "vlkeb", VLKEB, missing)
    assert caught.value.where == f"{folder / 'records.json'}[1].m_loc"
    loaded = load(folder, "vlkeb", VLKEB, missing, skip_missing=True)
    assert (len(loaded.cases), loaded.skipped) == (1, {"no picture under `m_loc`": 1})


def test_pictures_of_two_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "records.json").write_text(json.dumps([VLKEB, COMPREHEND | VLKEB]))
    with pytest.raises(ImageError):
        load_cases(tmp_path / "records.json", "vlkeb")
    assert load_cases(tmp_path / "records.json", "vlkeb", folder).cases == load(folder, "vlkeb", VLKEB, VLKEB).cases
    (tmp_path / "val").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "val/again.png")
    both = load_cases(tmp_path / "records.json", "vlkeb", str(folder), rephrase_images=str(tmp_path)).cases[0]
    assert {p.image.parent.parent for p in both.probes if p.kind == "related"} == {tmp_path}
    assert {p.image.parent.parent for p in both.probes if p.kind != "related" and p.image} == {folder}


def test_another_template(folder: Path) -> None:
    for name, (format, record) in FILES.items():
        prompts = [[p.prompt.text for case in load(folder, format, record, template=t).cases for p in case.probes] for t in ("{}", "{x}<{}>")]  # fmt: skip
        about_pictures = [p.image is not None for case in load(folder, format, record).cases for p in case.probes]
        assert prompts[1] == [f"{{x}}<{text}>" if shown else text for text, shown in zip(prompts[0], about_pictures, strict=True)], name  # fmt: skip
        assert not any("Short answer" in text for text in prompts[0])


# Strangers' files


@pytest.mark.parametrize("name", FILES)
def test_a_record_that_lacks_a_field_or_has_it_of_another_type_is_named_with_the_field(folder: Path, name: str) -> None:
    format, record = FILES[name]
    unread = {"pred", "type_self", "Category", "pid", "img_topk", "ori_rt_img_topk"}
    for key in record.keys() - unread:
        if key != "port_new":
            with pytest.raises(DataError) as caught:
                load(folder, format, record, {k: v for k, v in record.items() if k != key})
            assert str(folder / "records.json") + "[1]" == caught.value.where and "also" in str(caught.value.expected)
        for value in (None, 3, ["x"], {"a": 1}, True, "\ud800", "x" * (MAX_TEXT + 1)):
            with pytest.raises(DataError) as caught:
                load(folder, format, record, record | {key: value})
            assert str(caught.value.where).startswith(f"{folder / 'records.json'}[1].{key}") or key == "knowledge_type"
            assert len(str(caught.value)) < 2000
    for key in record.keys() & unread - {"pred"}:
        assert load(folder, format, {k: v for k, v in record.items() if k != key}).cases == load(folder, format, record).cases  # fmt: skip


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.png", "val/../../x.png", "val/..", "C:\\x.png", "\\\\host\\x.png", "val\\..\\..\\x.png", "c:x.png"])  # fmt: skip
def test_a_picture_outside_the_folder_is_refused_even_if_it_is_there(folder: Path, path: str) -> None:
    for format, record in FILES.values():
        for key in PICTURES & record.keys():
            with pytest.raises(DataError, match="a picture outside its folder") as caught:
                load(folder, format, record | {key: path}, skip_missing=True)
            assert caught.value.where == f"{folder / 'records.json'}[0].{key}"


def test_names_that_no_file_can_have_are_pictures_that_are_not_there(folder: Path) -> None:
    for path in ("a\0b", "x" * 3000, "val", "val/edit.jpg/x", "."):
        with pytest.raises(ImageError, match="no such picture"):
            load(folder, "vlkeb", VLKEB | {"image": path})


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"nul", b"{}", b'"x"', b"3", b"null", b"[[]]", b"[null]", b"[3]", b'["x"]', b"[" * 100_000, b'[{"a":' * 50_000, b"9" * 5000, b"[1e999]", b"\xff[]", b"\x00", b"NaN"],
    ids=lambda content: content[:9].decode(errors="replace"),
)  # fmt: skip
def test_a_file_that_is_no_list_of_records(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "records.json").write_bytes(content)
    for format in FORMATS:
        with pytest.raises(DataError) as caught:
            load_cases(tmp_path / "records.json", format)
        assert str(caught.value.where).startswith(str(tmp_path / "records.json"))


def test_a_file_that_is_not_there_or_none_or_endless(tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as huge:
        huge.truncate(MAX_BYTES + 1)
    began = time.process_time()
    for place in (tmp_path, tmp_path / "none.json", tmp_path / "huge.json", tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(DataError):
            load_cases(place, "vlkeb")
    assert time.process_time() - began < 1


def test_options_that_cannot_be(folder: Path) -> None:
    for words, options in (("no such format", {"format": "zsre"}), ("template", {"template": "Q:"}), ("so many steps", {"hop": 5}), ("so many steps", {"hop": 0})):  # fmt: skip
        with pytest.raises(RequestError, match=words):
            load(folder, **{"format": "vlkeb"} | options)  # type: ignore[arg-type]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["", "\ud800", "../x", "val/edit.jpg", "1-hop", "9-hop", "gqa", "visual_knowledge"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*VISUAL, "port_type", "Q&A", "x"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@law
@given(st.data())
def test_any_json_anywhere_is_read_counted_or_a_typed_error(folder: Path, data: st.DataObject) -> None:
    format, record = FILES[data.draw(st.sampled_from(sorted(FILES)))]
    records: Any = [copy.deepcopy(record), copy.deepcopy(record)]
    for _ in range(data.draw(st.integers(1, 2))):
        *path, key = data.draw(st.sampled_from([place for place in places(records) if place]))
        inner = records
        for step in path:
            inner = inner[step]
        if data.draw(st.booleans()):
            inner[key] = data.draw(JSON)
        else:
            del inner[key]
            break  # the other places may be gone with it
    try:
        loaded = load(folder, format, *records, hop=data.draw(st.sampled_from([None, None, 1])))
    except MmeditError as error:
        assert isinstance(error, DataError | ImageError) and str(folder / "records.json") in str(error.where)
        assert len(str(error)) < 2000
    else:
        assert len({case.id.split(".")[0] for case in loaded.cases}) + sum(loaded.skipped.values()) == len(records)
        for case in loaded.cases:
            json.dumps([case.request.target, *table(case, folder)]).encode()
            assert all(p.prompt.text and (p.image is None or p.image.is_relative_to(folder)) for p in case.probes)

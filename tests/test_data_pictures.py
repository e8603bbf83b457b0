"""A user's pictures, however they are given: files, folders, globs, lists, arrays, datasets; and none of them opened."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmedit.data.deferred import Deferred
from mmedit.data.pictures import read_pictures
from mmedit.data.strangers import MAX_BYTES
from mmedit.errors import DataError, ImageError, MmeditError
from mmedit.models.images import load_image

law = settings(deadline=None, max_examples=60)
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip) | st.just(
    'a\u2028b\u2029, "c"'
)


def put(folder: Path, *names: str) -> Path:
    """Files that nobody can open as pictures: whoever tries, fails."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("no picture")
    return folder


def names(places: Any) -> list[str]:
    return [picture.image.name for picture in read_pictures(places)]


# Folders


def test_a_folder_stands_for_the_pictures_in_it_and_below(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a.JPG", "c/d.WebP", "c/e/f.jpeg")
    put(
        tmp_path, "notes.txt", "x.csv", "paper.pdf", ".hidden.png", "._a.JPG", ".trash/g.png", "png", "folder.png/h.gif"
    )
    read = read_pictures(tmp_path)
    assert [str(p.image.relative_to(tmp_path)) for p in read] == ["a.JPG", "b.png", "c/d.WebP", "c/e/f.jpeg", "folder.png/h.gif"]  # fmt: skip
    assert read[3].label == f"{tmp_path.name}/c/e/f.jpeg" and read[3].caption is None and read[3].objects is None
    assert names([tmp_path / "c", str(tmp_path / "b.png")]) == ["d.WebP", "f.jpeg", "b.png"]
    assert names(tmp_path / ".hidden.png") == [".hidden.png"], "what is named is taken"


def test_links_in_circles_end_and_each_folder_is_read_once(tmp_path: Path) -> None:
    put(tmp_path, "a/one.png", "a/b/two.png")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/self").symlink_to(tmp_path / "a/self")
    (tmp_path / "again").symlink_to(tmp_path / "a/b")
    assert names(tmp_path) == ["two.png", "one.png"]
    assert names(tmp_path / "again") == ["two.png", "one.png"], "links are followed"
    assert names(str(tmp_path / "**")) == ["two.png", "one.png"]


@pytest.mark.parametrize("target", ["nowhere.png", "loop.png"])
def test_a_link_to_no_picture_is_not_passed_over(tmp_path: Path, target: str) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / target)
    for place in (tmp_path, tmp_path / "*.png", tmp_path / "loop.png"):
        with pytest.raises(ImageError, match="no such picture"):
            read_pictures(place)


def test_places_without_pictures(tmp_path: Path) -> None:
    put(tmp_path, "deep/notes.txt", "deep/.b.png")
    for place, words in (
        (tmp_path / "deep", "without pictures"), (tmp_path / "none", "no such picture or folder"),
        (tmp_path / "deep/*.png", "no picture is called so"), (tmp_path / "deep/*.txt", "no picture is called so"),
        (tmp_path / ("x" * 300), "cannot look"), ("a\0b", "no such|cannot look"), ("", "without pictures|no such"),
        (tmp_path / "**x**" / "*", "cannot look|no picture"), (7, "not a place"), (None, "not a place"), ([None], "not a place"), (b"a.png", "not a place"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=words):
            read_pictures(tmp_path / "deep" if place == "" else place)
    assert read_pictures([]) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything may be read")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    (put(tmp_path, "a/b.png") / "a").chmod(0)
    try:
        with pytest.raises(ImageError):
            read_pictures(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o700)


# Globs


def test_a_glob_stands_for_what_it_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(
        tmp_path,
        "cat1.png",
        "cat2.PNG",
        "cat3.txt",
        "dog.png",
        ".cat4.png",
        "sub/cat5.png",
        "sub/deep/cat6.png",
        "cat[7].png",
    )
    assert names(str(tmp_path / "cat?.*")) == ["cat1.png", "cat2.PNG"]
    assert names(tmp_path / "s*") == ["cat5.png", "cat6.png"], "folders stand for their pictures"
    assert names(tmp_path / ".cat*") == [".cat4.png"], "hidden files are found if asked for"
    assert names(tmp_path / "cat[7].png") == ["cat[7].png"], "a file of that name goes first"
    assert names(str(tmp_path / "**/cat*.png")) == ["cat1.png", "cat[7].png", "cat5.png", "cat6.png"]
    monkeypatch.chdir(tmp_path)
    assert read_pictures("s*/*.png")[0].label == "sub/cat5.png"
    assert names(["*.png", tmp_path / "dog.png"]) == ["cat1.png", "cat[7].png", "dog.png", "dog.png"]


# Lists

ROWS = st.lists(
    st.tuples(st.one_of(st.none(), WORDS), st.one_of(st.none(), st.lists(st.sampled_from(["cat", "fire engine", "Löwe"]), min_size=1, max_size=3))),
    min_size=1, max_size=5,
)  # fmt: skip


@law
@given(ROWS, st.sampled_from(["image", "path", "file_name"]), st.sampled_from(["caption", "text"]), st.booleans())
def test_a_list_gives_back_what_was_written(rows: list[Any], column: str, told: str, bom: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = put(Path(name), *(f"{i}/ä.png" for i in range(len(rows))))
        records = [
            {column: f"{i}/ä.png", told: words, "objects": nouns, "more": 3} for i, (words, nouns) in enumerate(rows)
        ]
        lines = "\n\n".join(json.dumps({k: v for k, v in r.items() if v is not None}, ensure_ascii=False) for r in records)  # fmt: skip
        (folder / "list.jsonl").write_text(lines, encoding="utf-8-sig" if bom else "utf-8")
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, list(records[0]))
        writer.writeheader()
        writer.writerows(r | {"objects": "; ".join(r["objects"]) if r["objects"] else None} for r in records)
        (folder / "list.CSV").write_text(table.getvalue(), encoding="utf-8-sig" if bom else "utf-8", newline="")
        for place in (folder / "list.jsonl", str(folder / "list.CSV")):
            read = read_pictures(place)
            assert [p.image for p in read] == [folder / r[column] for r in records]
            assert [p.label for p in read] == [r[column] for r in records]
            assert [p.caption for p in read] == [r[told] for r in records]
            assert [p.objects for p in read] == [r["objects"] and tuple(r["objects"]) for r in records]


def test_a_folder_with_a_list_of_its_own_stands_for_that(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "sub/c.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\nsub/c.png,a cat\na.png,\n")
    assert [(p.image.name, p.caption) for p in read_pictures(tmp_path)] == [("c.png", "a cat"), ("a.png", None)]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "objects": []}')
    assert [(p.image.name, p.objects) for p in read_pictures(tmp_path)] == [("b.png", ())]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"image": "a.png"}\n\n{"image": 3}', 3, "no picture is named"), ('{"image": "a.png"}\n{', 2, "not JSON"), ('{"caption": "a"}', 1, "no picture is named"),
        ('["a.png"]', 1, "not a JSON object"), ('{"image": "a.png", "caption": ["a"]}', 1, "a caption is a text"), ("[" * 100_000, 1, "not JSON"), ("9" * 5000, 1, "not JSON"),
        ('{"image": "a.png", "objects": {"bbox": []}}', 1, "objects are nouns"), ('{"image": "a.png", "objects": [1]}', 1, "objects are nouns"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, text: str, line: int, words: str) -> None:
    (put(tmp_path, "a.png") / "list.jsonl").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        read_pictures(tmp_path / "list.jsonl")
    assert caught.value.where == f"{tmp_path / 'list.jsonl'}, line {line}"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('image,caption\na.png,"x\ny"\na.png,b,c\n', 4, "more fields"), ("image\na.png\n\"b", 3, "not CSV"), ("caption\nx", 2, "no picture is named"),
        ("image,caption\n,x", 2, "no picture is named"), (f"image\n{'x' * 200_000}", 2, "not CSV"),
    ],
)  # fmt: skip
def test_a_line_of_csv_that_cannot_be_read_is_named(tmp_path: Path, text: str, line: int, words: str) -> None:
    (put(tmp_path, "a.png") / "list.csv").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        read_pictures(tmp_path / "list.csv")
    assert caught.value.where == f"{tmp_path / 'list.csv'}, line {line}"


@pytest.mark.parametrize("name", ["no.png", "sub", "x" * 300 + ".png", "a\0.png", "\ud800.png"])
def test_a_list_of_pictures_that_are_not_there(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a.png", "sub/b.png")
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": "a.png"}) + "\n" + json.dumps({"image": name}))
    with pytest.raises(ImageError, match="no such picture") as caught:
        read_pictures(tmp_path / "list.jsonl")
    assert caught.value.where == f"{tmp_path / 'list.jsonl'}, line 2"


def test_lists_that_are_none(tmp_path: Path) -> None:
    for content in (b"", b"\n\n", b"image,caption\n"):
        (tmp_path / "list.csv").write_bytes(content)
        with pytest.raises(ImageError, match="a list without pictures"):
            read_pictures(tmp_path / "list.csv")
    (tmp_path / "list.jsonl").write_bytes(b'{"image": "\xff"}')
    with pytest.raises(DataError, match="cannot read this file"):
        read_pictures(tmp_path / "list.jsonl")
    with (tmp_path / "list.jsonl").open("wb") as huge:
        huge.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match="not a file of records"):
        read_pictures(tmp_path / "list.jsonl")


@law
@given(st.integers(0, 10**6), st.sampled_from(["csv", "jsonl"]))
def test_any_bytes_are_a_list_or_an_error_of_ours(seed: int, suffix: str) -> None:
    rng = random.Random(seed)
    good = (
        b'{"image": "a.png", "caption": "x", "objects": ["a"]}\n'
        if suffix == "jsonl"
        else b'image,caption\na.png,"x"\n'
    )
    content = bytearray(good * 2)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(content))
        content[place : place + rng.randint(0, 3)] = rng.choice([b"", b'"', b"\n", b",", b"\0", b"\xff", b"{", b"[", b"null", b"\\ud800"])  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        (put(Path(name), "a.png") / f"list.{suffix}").write_bytes(content)
        try:
            assert all(picture.image.is_file() for picture in read_pictures(Path(name, f"list.{suffix}")))
        except MmeditError as error:
            assert isinstance(error, DataError | ImageError) and error.where


# Pictures themselves, and datasets


def test_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    image, array = Image.new("RGB", (4, 4)), np.zeros((4, 4, 3), np.uint8)
    read = read_pictures(place for place in (put(tmp_path, "a.png") / "a.png", image, array))
    assert read[1].image is image and read[2].image is array
    assert [picture.label for picture in read] == ["a.png", "picture 2", "picture 3"]
    assert read_pictures(array)[0].image is array and read_pictures(read) == read


class Rows:
    """What of a `datasets.Dataset` is used."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.decoded = rows, 0
        self.column_names = list(rows[0])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            assert key != "image", "this would decode them all"
            return [row[key] for row in self.rows]
        self.decoded += 1
        return self.rows[key]


def test_a_dataset_is_decoded_row_by_row_at_first_use() -> None:
    reds = [Image.new("RGB", (2, 3), (i, 0, 0)) for i in range(4)]
    encoded = io.BytesIO()
    reds[3].save(encoded, "PNG")
    values = [*reds[:3], {"path": None, "bytes": encoded.getvalue()}]
    rows = Rows([{"image": v, "caption": f"red {i}", "objects": ["red"] * i} for i, v in enumerate(values)])
    read = read_pictures(rows)
    assert [(p.caption, p.objects, p.label) for p in read] == [(f"red {i}", ("red",) * i, f"row {i}") for i in range(4)]
    assert rows.decoded == 0
    assert [load_image(read[i].image).getpixel((0, 0)) for i in (3, 1, 1)] == [(3, 0, 0), (1, 0, 0), (1, 0, 0)]
    assert rows.decoded == 2


def test_datasets_that_cannot_be_taken() -> None:
    rows = Rows([{"image": None, "caption": "a"}])
    with pytest.raises(ImageError, match="not a picture"):
        load_image(read_pictures(rows)[0].image)
    with pytest.raises(ImageError, match="without a column `image`"):
        read_pictures(Rows([{"img": 1}]))
    with pytest.raises(DataError, match="a caption is a text"):
        read_pictures(Rows([{"image": None, "text": ["a", "b"]}]))

    class Splits(dict[str, Rows]):
        column_names = {"train": ["image"]}  # noqa: RUF012

    with pytest.raises(ImageError, match="several splits") as caught:
        read_pictures(Splits(train=rows))
    assert caught.value.got == ["train"]
    streamed = type("IterableDataset", (), {"column_names": ["image"]})()
    with pytest.raises(ImageError, match="streamed"):
        read_pictures(streamed)


@pytest.mark.filterwarnings("ignore")  # the package's own
def test_an_image_folder_of_hugging_face_s_package(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for i in range(3):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"train/{i}.png")
    (tmp_path / "train/metadata.csv").write_text("file_name,text\n0.png,a\n2.png,c\n")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))["train"]
    for rows in (loaded, loaded.cast_column("image", datasets.Image(decode=False)), tmp_path / "train"):
        read = read_pictures(rows)
        assert [(p.caption, load_image(p.image).getpixel((0, 0))[0]) for p in read] == [("a", 0), ("c", 2)]


def test_a_deferred_picture_is_made_once_and_is_a_picture_like_any_other(tmp_path: Path) -> None:
    real = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 4), np.uint8))
    real.save(tmp_path / "a.png")
    made: list[int] = []
    deferred = Deferred(lambda: made.append(1) or Image.open(tmp_path / "a.png"))  # type: ignore[func-returns-value]
    assert isinstance(deferred, Image.Image) and not made
    assert (deferred.size, deferred.mode, deferred.tobytes()) == (real.size, real.mode, real.tobytes())
    assert load_image(deferred).tobytes() == load_image(real).tobytes()
    assert np.array_equal(np.asarray(deferred), np.asarray(real)) and len(made) == 1
    assert pickle.loads(pickle.dumps(deferred)).tobytes() == real.tobytes() and repr(deferred).startswith("<")
    fresh = Deferred(lambda: Image.open(tmp_path / "a.png"))
    assert pickle.loads(pickle.dumps(fresh)).tobytes() == real.tobytes() and fresh == deferred


def test_a_deferred_picture_that_cannot_be_made_fails_when_used_and_each_time(tmp_path: Path) -> None:
    broken = Deferred(lambda: Image.open(tmp_path / "a.png"))
    for _ in range(2):
        with pytest.raises(ImageError, match="cannot read this picture"):
            load_image(broken)
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    assert load_image(broken).size == (3, 2)

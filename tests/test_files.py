"""Files appear whole or not at all, and nothing is left behind."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmedit.errors import OutputError
from mmedit.files import check_writable, make_folder, replacing, write_text

WRITERS = [lambda path: write_text(path, "new"), check_writable]


def tree(folder: Path) -> dict[str, str | None]:
    """Everything below a folder, with the files' texts."""
    return {str(p.relative_to(folder)): p.read_text() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("text", ["", "plain", "Käse 猫\n", "x" * 100_000])
def test_write_text_read_text_is_identity_over_old_content(tmp_path: Path, text: str) -> None:
    target = tmp_path / "note.txt"
    for old in (None, "old content, which is longer than some"):
        if old is not None:
            target.write_text(old)
        write_text(target, text)
        assert target.read_bytes() == text.encode()
        assert tree(tmp_path) == {"note.txt": text}


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [{}, {"note.txt": "old"}])
def test_an_exception_in_the_block_leaves_everything_as_it_was(
    tmp_path: Path, before: dict[str, str], raised: type[BaseException]
) -> None:
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(raised, match="stop"), replacing(tmp_path / "note.txt") as part:
        part.write_text("half of the new con")
        raise raised("stop")
    assert tree(tmp_path) == before


def test_nobody_ever_sees_half_a_file(tmp_path: Path) -> None:
    """Until the block ends the old content stands there, and who opened it before can read it to its end."""
    target = tmp_path / "note.txt"
    target.write_text("old")
    with target.open() as reader:
        with replacing(target) as part:
            part.write_text("new")
            assert (part.parent, target.read_text()) == (tmp_path, "old")
        assert (reader.read(), target.read_text()) == ("old", "new")


def test_an_operating_system_error_in_the_block_is_an_output_error(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write this file\n.*note.txt\n.*No space left") as caught,
        replacing(tmp_path / "note.txt"),
    ):
        raise OSError(28, "No space left on device")
    assert caught.value.where == tmp_path / "note.txt" and caught.value.do
    assert tree(tmp_path) == {}


def test_a_new_file_has_the_permissions_of_any_other_new_file(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("write", WRITERS, ids=["write_text", "check_writable"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing/note.txt", "choose a folder that exists"),
        ("file/note.txt", "choose a folder that exists"),
        ("folder", "this is a folder"),
        ("", "this is a folder"),
        ("pipe", "not a regular file"),
        ("n" * 300, "too long"),
    ],
)
def test_a_place_that_cannot_hold_a_file_is_refused(
    tmp_path: Path, name: str, told: str, write: Callable[[Path], None]
) -> None:
    (tmp_path / "file").write_text("untouched")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=told) as caught:
        write(tmp_path / name)
    assert caught.value.where == tmp_path / name
    assert tree(tmp_path) == before
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses even root")
@pytest.mark.parametrize("write", [*WRITERS, make_folder], ids=["write_text", "check_writable", "make_folder"])
def test_a_file_system_that_refuses_is_an_output_error(write: Callable[[Path], object]) -> None:
    with pytest.raises(OutputError, match="/proc/mmedit"):
        write(Path("/proc/mmedit"))


@pytest.mark.parametrize("before", [{}, {"note.txt": "old"}])
def test_check_writable_leaves_nothing_behind(tmp_path: Path, before: dict[str, str]) -> None:
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    check_writable(tmp_path / "note.txt")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("there", [[], ["a"], ["a", "a/b", "a/b/any"]])
def test_make_folder_makes_what_is_missing_and_nothing_else(tmp_path: Path, there: list[str]) -> None:
    for name in there:
        (tmp_path / name).mkdir()
    assert make_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert tree(tmp_path) == dict.fromkeys({"a", "a/b", *there})


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_make_folder_refuses_a_path_through_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("untouched")
    with pytest.raises(OutputError, match="folder") as caught:
        make_folder(tmp_path / name)
    assert caught.value.where == tmp_path / name and caught.value.do
    assert tree(tmp_path) == {"file": "untouched"}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that refuses even root")
def test_make_folder_refuses_a_folder_that_is_there_but_cannot_be_written() -> None:
    with pytest.raises(OutputError, match="/proc"):
        make_folder("/proc")

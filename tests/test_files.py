"""Files appear whole or not at all, and nothing is left behind."""

import errno
import fcntl
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmedit import files, locks
from mmedit.errors import OutputError
from mmedit.files import claimed, make_folder, replacing, write_text
from mmedit.patches.new_folder import new_folder


def claim(path: Path) -> None:
    with claimed(path):
        pass


WRITERS = [lambda path: write_text(path, "new"), claim]


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


@pytest.mark.parametrize("write", WRITERS, ids=["write_text", "claimed"])
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
@pytest.mark.parametrize("write", [*WRITERS, make_folder], ids=["write_text", "claimed", "make_folder"])
def test_a_file_system_that_refuses_is_an_output_error(write: Callable[[Path], object]) -> None:
    with pytest.raises(OutputError, match="/proc/mmedit"):
        write(Path("/proc/mmedit"))


@pytest.mark.parametrize("before", [{}, {"note.txt": "old"}])
def test_a_claim_leaves_nothing_behind(tmp_path: Path, before: dict[str, str]) -> None:
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    with claimed(tmp_path / "note.txt"):
        pass
    assert tree(tmp_path) == before


def elsewhere(act: Callable[[], None]) -> BaseException | None:
    """What becomes of something done in another thread."""
    failures = list[BaseException | None]([None])

    def run() -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return failures[-1]


@pytest.mark.parametrize("hold", [claimed, replacing])
def test_one_at_a_time_writes_a_file(
    tmp_path: Path, hold: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever way the other names it; other files are free, and so is this one afterwards."""
    target = tmp_path / "folder" / "note.txt"
    target.parent.mkdir()
    (tmp_path / "link").symlink_to(target.parent)
    monkeypatch.chdir(target.parent)
    for name in (target, tmp_path / "link" / "note.txt", Path("note.txt")):
        with hold(target):
            for write in WRITERS:
                error = elsewhere(lambda write=write, name=name: write(name))
                assert isinstance(error, OutputError) and "another process or thread" in error.what
                assert error.where == name and error.do
            assert elsewhere(lambda: write_text(target.with_name("note.txt2"), "other")) is None
        assert elsewhere(lambda: write_text(target, "after")) is None
    assert tree(target.parent) == {"note.txt": "after", "note.txt2": "other"}


def test_who_has_claimed_a_file_may_write_it_and_others_as_often_as_they_like(tmp_path: Path) -> None:
    target = tmp_path / "note.txt"
    (tmp_path / "link").symlink_to(tmp_path)
    with claimed(target), claimed(target), claimed(tmp_path / "other.txt"):
        for text in ("one", "two"):
            write_text(tmp_path / "link" / "note.txt", text)
            write_text(tmp_path / "third.txt", text)
        assert isinstance(elsewhere(lambda: write_text(target, "x")), OutputError), "still claimed after it is written"
        assert target.read_text() == "two"
    (tmp_path / "link").unlink()
    assert tree(tmp_path) == {"note.txt": "two", "third.txt": "two"}


def test_a_claim_ends_with_its_block_however_that_ends(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), claimed(tmp_path / "note.txt"):
            raise error
        assert elsewhere(lambda: write_text(tmp_path / "note.txt", "x")) is None


def test_one_who_waits_writes_after_the_other(tmp_path: Path) -> None:
    target, entered = tmp_path / "note.txt", threading.Event()

    def second() -> None:
        entered.set()
        with replacing(target, wait=True) as part:
            assert target.read_text() == "first"
            part.write_text("second")

    with replacing(target) as part:
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait()
        thread.join(0.05)
        assert thread.is_alive() and not target.exists()
        part.write_text("first")
    thread.join()
    assert tree(tmp_path) == {"note.txt": "second"}


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    token = "0123456789abcdef"
    kept = {name: "" for name in (f".note.txt.{token}.partly", f"note.txt.{token}.part", f".note_txt.{token}.part", ".other.lock", f".other.{token}.part")}  # fmt: skip
    for name in (*kept, ".note.txt.lock", f".note.txt.{token}.part"):
        (tmp_path / name).touch()
    write_text(tmp_path / "note.txt", "new")
    assert tree(tmp_path) == {**kept, "note.txt": "new"}


def test_no_lock_is_made_through_a_link(tmp_path: Path) -> None:
    """A stranger's link in a shared folder does not make a file elsewhere."""
    (tmp_path / ".note.txt.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="cannot write a file here"):
        write_text(tmp_path / "note.txt", "x")
    assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "note.txt").exists()


@pytest.mark.parametrize("kind", ["no locks in this file system", "no locks in this system", "another trouble"])
def test_where_there_are_no_locks_files_are_whole_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO if kind == "another trouble" else errno.ENOLCK, "refused")

    monkeypatch.setattr(locks, "fcntl", None) if "in this system" in kind else monkeypatch.setattr(
        fcntl, "flock", refuse
    )
    target, part = tmp_path / "note.txt", tmp_path / ".note.txt.0123456789abcdef.part"
    part.touch()  # of one who may be alive
    (tmp_path / ".note.txt.lock").touch()
    if kind == "another trouble":
        with pytest.raises(OutputError, match="refused"):
            write_text(target, "x")
        return
    with replacing(target) as mine:
        mine.write_text("first to begin")
        assert elsewhere(lambda: write_text(target, "first to end")) is None
        assert target.read_text() == "first to end"
    assert target.read_text() == "first to begin" and part.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that is closed by its end alone
@pytest.mark.parametrize("write", WRITERS, ids=["write_text", "claimed"])
def test_ctrl_c_at_every_line_leaves_nothing_locked(
    tmp_path: Path, write: Callable[[Path], None], untraced: None
) -> None:
    """What a Ctrl-C leaves beside a file, if anything, is gone after the next write."""
    target, at = tmp_path / "note.txt", 0
    interrupted = True
    while interrupted:
        at, interrupted, lines = at + 1, False, [0]

        def trace(frame: Any, event: str, _: Any, lines: list[int] = lines, at: int = at) -> Any:
            if Path(frame.f_code.co_filename).name not in ("files.py", "locks.py", "contextlib.py"):
                return None
            lines[0] += event == "line"
            if event == "line" and lines[0] == at:
                signal.raise_signal(signal.SIGINT)
            return trace

        try:
            sys.settrace(trace)
            write(target)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
        assert not files._claims.get(), f"line {at}"
        assert target.read_text() == "new" if target.exists() else True
        write_text(target, "new")
        assert tree(tmp_path) == {"note.txt": "new"}, f"line {at}"
        target.unlink()
    assert at > 40


@pytest.fixture
def untraced() -> Iterator[None]:
    previous = sys.gettrace()
    yield
    sys.settrace(previous)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_and_is_never_set(tmp_path: Path, mask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to all threads: one that asked for it by setting it would open another's new file to everybody."""
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", None)
            write_text(tmp_path / "file", "")
            with new_folder(tmp_path / "folder"):
                pass
        assert [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("file", "folder")] == [
            0o666 & ~mask,
            0o777 & ~mask,
        ]
    finally:
        os.umask(before)


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

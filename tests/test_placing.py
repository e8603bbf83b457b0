"""Placing a file: the same bytes whatever the file system can do, nothing where it is told to leave it out, errors as they come."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmedit.patches import placing
from mmedit.patches.placing import PAGE, place

EDGES = [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE - 1, 5 * PAGE, 8 * PAGE]
size = st.one_of(st.sampled_from(EDGES), st.integers(0, 8 * PAGE))


@pytest.fixture(autouse=True)
def no_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on ext4 and tmpfs."""
    monkeypatch.setattr(placing, "_cloned", lambda read, write, required: False)


def n_handles() -> int:
    here = Path("/proc/self/fd")
    return len(list(here.iterdir())) if here.exists() else 0


@st.composite
def file_and_holes(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A size, and stretches of a file of this size that do not overlap, in any order."""
    n_bytes = draw(size)
    edges = sorted(draw(st.lists(st.one_of(st.integers(0, n_bytes), st.sampled_from(EDGES).map(lambda e: min(e, n_bytes))), max_size=8)))  # fmt: skip
    return n_bytes, draw(st.permutations(list(zip(edges[::2], edges[1::2], strict=False))))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=file_and_holes())
def test_all_is_copied_but_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[int, list[tuple[int, int]]]
) -> None:
    (n_bytes, holes), source, target = case, tmp_path / "a", tmp_path / "b"
    monkeypatch.setattr(placing, "STRETCH", 2 * PAGE)
    stretches = list(placing._stretches(n_bytes, holes))
    assert all(start % PAGE == 0 and start < stop <= start + 2 * PAGE for start, stop in stretches)
    assert all(stop % PAGE == 0 or stop == n_bytes for _, stop in stretches)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(stretches))
    source.write_bytes(os.urandom(n_bytes))
    target.unlink(missing_ok=True)
    place(source, target, left_out=holes)
    wanted, got = bytearray(source.read_bytes()), bytearray(target.read_bytes())
    written = {byte for start, stop in stretches for byte in range(start, stop)}
    for first, stop in holes:
        assert len(written.intersection(range(first, stop))) < 2 * PAGE, "no more of it than its first and last page"
        wanted[first:stop] = got[first:stop] = bytes(stop - first)
    assert got == wanted


def without_direct_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT")


def refused_on_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)


def refused_on_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a disk wants larger blocks; a part may have been written."""
    write = os.pwrite

    def refuse(handle: int, data: Any, at: int) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            if at % (3 * PAGE):
                raise OSError(errno.EINVAL, "Invalid argument")
            data = data[:PAGE]
        return write(handle, data, at)

    monkeypatch.setattr(os, "pwrite", refuse)


@pytest.mark.parametrize("spoil", [without_direct_writes, refused_on_opening, refused_on_writing])
def test_where_nothing_can_be_written_past_the_cache_it_is_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    (tmp_path / "a").write_bytes(os.urandom(9 * PAGE + 5))
    monkeypatch.setattr(placing, "STRETCH", 2 * PAGE)
    spoil(monkeypatch)
    place(tmp_path / "a", tmp_path / "b", left_out=[(PAGE + 1, 2 * PAGE - 1)])
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_whole_pages_go_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct, write_all = [], placing.write_all
    try:
        os.close(os.open(tmp_path / "try", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except (AttributeError, OSError):
        pytest.skip("this file system has no direct writes")

    def watched(handle: int, data: Any, at: int) -> None:
        direct.append((at, len(data), bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)))
        write_all(handle, data, at)

    monkeypatch.setattr(placing, "write_all", watched)
    (tmp_path / "a").write_bytes(os.urandom(5 * PAGE + 7))
    place(tmp_path / "a", tmp_path / "b")
    assert direct == [(0, 5 * PAGE, True), (5 * PAGE, 7, False)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("past_the_cache", [True, False])
def test_a_failing_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, past_the_cache: bool) -> None:  # fmt: skip
    if not past_the_cache:
        without_direct_writes(monkeypatch)
    (tmp_path / "a").write_bytes(os.urandom(5 * PAGE))
    before = n_handles()

    def fail(handle: int, data: Any, at: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        place(tmp_path / "a", tmp_path / "b")
    assert caught.value.errno == code
    assert n_handles() == before
    with pytest.raises(FileExistsError):
        place(tmp_path / "a", tmp_path / "b")

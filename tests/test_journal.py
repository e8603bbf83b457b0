"""Results as they come: what is whole stays, what was cut off is written again, runs do not mix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedit.errors import OutputError
from mmedit.evaluation.journal import Journal

LINES = [{"case": str(i), "text": "ä\n" * i, "value": i / 3} for i in range(5)]


def written(folder: Path, lines: list[dict[str, object]], process: int = 0) -> Path:
    with Journal(folder, "run", {"seed": 0}, process) as journal:
        for line in lines:
            journal.write(line)
    return folder / f"run.{process}.jsonl"


def read(folder: Path) -> list[dict[str, object]]:
    with Journal(folder, "run", {"seed": 0}, process=9) as journal:
        return list(journal.lines())


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_file_cut_anywhere_holds_the_lines_before_and_takes_the_rest(data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = written(folder, LINES)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        left = read(folder)
        assert left == LINES[: len(left)] and len(left) == max(0, whole[:cut].count(b"\n") - 1)
        written(folder, LINES[len(left) :])
        assert read(folder) == LINES and path.read_bytes() == whole


def test_the_parts_of_several_processes_are_one_run(tmp_path: Path) -> None:
    written(tmp_path, LINES[:2], 0)
    written(tmp_path, LINES[2:], 1)
    assert read(tmp_path) == LINES


def test_another_run_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    path = written(tmp_path, LINES)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="another seed"):
        Journal(tmp_path, "run", {"seed": 1})
    assert path.read_bytes() == before
    with Journal(tmp_path, "other", {"seed": 1}) as journal:
        assert list(journal.lines()) == []


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with Journal(tmp_path, "run", {}), pytest.raises(OutputError, match="another run writes"):
        Journal(tmp_path, "run", {})
    with Journal(tmp_path, "run", {}):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    code = f"""
import os
from mmedit.evaluation.journal import Journal
journal = Journal({str(tmp_path)!r}, "run", {{"seed": 0}})
journal.write({{"case": "0"}})
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert read(tmp_path) == [{"case": "0"}]


@pytest.mark.parametrize("garbage", [b"{\n", b"[1]\n", b"\xff\n", b"nonsense\n"])
def test_a_damaged_line_is_told_with_its_number(tmp_path: Path, garbage: bytes) -> None:
    path = written(tmp_path, LINES[:1])
    path.write_bytes(path.read_bytes() + garbage)
    with pytest.raises(OutputError, match=r"run\.0\.jsonl, line 3"):
        read(tmp_path)


def test_figures_come_back_as_they_were(tmp_path: Path) -> None:
    values = [1 / 3, 1e-17, 0.1 + 0.2, 5e-324]
    written(tmp_path, [{"values": values}])
    assert read(tmp_path)[0]["values"] == values
    assert json.loads((tmp_path / "run.0.jsonl").read_text().splitlines()[0])["format"] == "mmedit-journal"

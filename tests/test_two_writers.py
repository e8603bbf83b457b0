"""Two that write the same output at the same time: one wins whole, the other gets a clear error, or writes whole after it."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from pathlib import Path

import pytest
from forked_commands import COMMANDS, FILES, RESUMED, Commands, digest_of, shared

from mmedit.cli import main
from mmedit.errors import OutputError
from mmedit.files import replacing
from mmedit.locks import Lock

ALONE = [name for name in dict.fromkeys([*FILES, *COMMANDS]) if name not in RESUMED]
"""What holds its output from the beginning to the end."""


@pytest.fixture
def commands() -> Commands:
    return shared()


@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_processes_one_wins_whole(commands: Commands, name: str) -> None:
    """Both end, at least one well; one that fails says why; what stands there is what one alone would have written."""
    output = commands.output(name)
    first, second = commands.start(name, output), commands.start(name, output)
    ends = sorted([commands.end(first), commands.end(second)])
    assert ends[0][0] == 0 and ends[1][0] in (0, 2), ends
    if ends[1][0] == 2:
        assert any(word in ends[1][1] for word in ("another process", "another run", "exists already")), ends
    assert digest_of(name, output) == commands.reference(name)
    assert not list(output.parent.glob(f".{output.name}*")), "nothing is left beside it"


@pytest.mark.parametrize("killed", [False, True], ids=["the first goes on", "the first is killed"])
@pytest.mark.parametrize("name", ALONE)
def test_while_one_is_at_work_the_other_is_told_so(commands: Commands, name: str, killed: bool) -> None:
    """The first is stopped at a random step in the middle; nothing that it leaves when it is killed stands in anybody's way."""
    reference, output, rng = commands.reference(name), commands.output(name), random.Random(f"{name} {killed}")
    first = commands.start(name, output, stop_at=rng.randint(3, commands.steps[name] // 2))  # 1 and 2 open the lock
    code, said = commands.run(name, output)
    assert code == 2 and "another process or thread is writing this" in said and str(output) in said, said
    os.kill(first[0], signal.SIGKILL if killed else signal.SIGCONT)
    code, said = commands.end(first)
    assert code == (-signal.SIGKILL if killed else 0), said
    if killed:
        assert not output.exists()
        code, said = commands.run(name, output)
        assert code == 0, said
    assert digest_of(name, output) == reference
    assert [path.name for path in output.parent.iterdir()] == [output.name], "nothing is left beside it"


@pytest.mark.parametrize("name", FILES)
def test_a_command_holds_its_output_from_before_it_reads_anything_until_it_has_written(
    commands: Commands, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that nobody waits for long work to be told that it was for nothing: the lock is taken once, even where the input is missing."""
    taken, take, output = list[Path](), Lock.take, tmp_path / "output.safetensors"

    def counted(self: Lock, wait: bool = False) -> None:
        taken.append(self.target)
        take(self, wait)

    monkeypatch.setattr(Lock, "take", counted)
    given = [str(argument) for argument in commands.arguments(name, output)]
    for argv in ([a + ".missing" if a.startswith(str(commands.folder)) else a for a in given], given):
        monkeypatch.setattr(sys, "argv", ["mmedit", *argv])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code, output.exists()) == ((0, True) if argv is given else (2, False)), (
            capsys.readouterr()
        )
        assert taken.count(output) == 1
        taken.clear()


@pytest.mark.parametrize("wait", [False, True])
def test_a_file_written_by_many_threads_is_always_whole(tmp_path: Path, wait: bool) -> None:
    """Of those that do not wait for each other some are refused."""
    target, texts, failures, written = tmp_path / "file", [str(i) * 100_000 for i in range(8)], [], list[str]()

    def write(text: str) -> None:
        for _ in range(5):
            try:
                with replacing(target, wait) as part:
                    part.write_text(text)
                written.append(text)
                assert target.read_text() in texts
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) + len(failures) == 40 and written and not (wait and failures)
    assert all(isinstance(error, OutputError) and "another process or thread" in error.what for error in failures)
    assert target.read_text() in texts and [path.name for path in tmp_path.iterdir()] == ["file"]

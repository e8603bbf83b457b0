"""Two that write the same output at the same time: one wins whole, the other gets a clear error, or writes whole after it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from forked_commands import COMMANDS, Commands, digest_of, shared

from mmedit.files import replacing


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


def test_a_file_written_by_many_threads_is_always_whole(tmp_path: Path) -> None:
    target, texts, failures = tmp_path / "file", [str(i) * 100_000 for i in range(8)], list[BaseException]()

    def write(text: str) -> None:
        try:
            for _ in range(5):
                with replacing(target) as part:
                    part.write_text(text)
                assert target.read_text() in texts
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and target.read_text() in texts and [path.name for path in tmp_path.iterdir()] == ["file"]

"""Every command that writes, killed at random moments and at random steps: nothing half written, and a further run makes it whole.

`MMEDIT_KILLS=50` kills each command so often.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from forked_commands import COMMANDS, RESUMED, Commands, digest_of, shared

N_KILLS = int(os.environ.get("MMEDIT_KILLS", "2"))


@pytest.fixture
def commands() -> Commands:
    return shared()


def whole_files(output: Path) -> int:
    """How many files of results there are; each must be whole, though not all need be there."""
    files = [path for path in output.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        elif path.suffix == ".csv":
            assert path.read_bytes().endswith(b"\n")
        elif path.suffix == ".png":
            assert b"IEND" in path.read_bytes()[-12:]
    return len(files)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_nothing_half_written(commands: Commands, name: str) -> None:
    reference, rng, seen = commands.reference(name), random.Random(name), Counter[str]()
    while seen["killed"] < N_KILLS:
        number, output = seen["killed"] + seen["ended"], commands.output(name)
        if number % 2:
            code, said = commands.run(name, output, kill_after=rng.uniform(0, 1.05 * commands.seconds[name]))
        else:
            code, said = commands.run(name, output, kill_at=rng.randint(1, commands.steps[name]))
            assert code == -signal.SIGKILL, said
        assert code in (0, -signal.SIGKILL), said
        seen["killed" if code else "ended"] += 1
        if name in RESUMED:
            seen["some there" if whole_files(output) else "nothing there"] += 1
        elif output.exists():
            assert digest_of(name, output) == reference
            seen["whole"] += 1
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        if name in RESUMED or number % 10 == 0:
            code, said = commands.run(name, output)
            assert code == 0 and digest_of(name, output) == reference, said
            assert not list(output.parent.glob(f".{output.name}*")), "what the killed one left is gone"
        shutil.rmtree(output.parent)
    print(name, dict(seen))

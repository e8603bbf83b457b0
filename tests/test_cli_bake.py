"""`mmedit bake` and `mmedit patch diff`: results on stdout, every wrong input a clear error with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mmedit
from mmedit.cli import main
from mmedit.patches.checkpoint import open_checkpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmedit", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def patch_file(tmp_path: Path) -> Path:
    base, site, units = open_checkpoint("iconworld-llava"), mmedit.Site(2), torch.tensor([7, 9])
    rows = base.w_out(site).read(slice(7, 10))[[0, 2]]
    mmedit.Patch({site: (units, torch.ones(2, 128))}, {site: rows}, base.base).save(tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def test_bake_then_diff(run: Run, patch_file: Path, tmp_path: Path) -> None:
    name = "language_model.model.layers.2.mlp.down_proj.weight"
    code, out, err = run("bake", "iconworld-llava", patch_file, "-o", tmp_path / "baked", "--json")
    assert code == 0 and json.loads(out) == {"folder": str(tmp_path / "baked"), "rows": {name: 2}, "left_out": []}, err
    code, out, err = run("bake", "iconworld-llava", patch_file, "-o", tmp_path / "half", "--scale", 0.5, "--link", "hard")  # fmt: skip
    assert code == 0 and f"{name}: 2 rows" in out and f"wrote {tmp_path / 'half'}" in out, err
    code, out, err = run("patch", "diff", "iconworld-llava", tmp_path / "baked", "-o", tmp_path / "d.safetensors", "--json")  # fmt: skip
    assert code == 0 and json.loads(out)["neurons"] == ["L2.U7", "L2.U9"], err
    code, out, err = run("patch", "diff", "iconworld-llava", tmp_path / "half", "-o", tmp_path / "h.safetensors")
    assert code == 0 and "L2: 2 rows differ" in out and "saved" in out, err
    whole, half = (mmedit.Patch.load(tmp_path / f"{n}.safetensors").rows(mmedit.Site(2)) for n in "dh")
    assert torch.allclose(whole, torch.ones(2, 128), atol=1e-3) and torch.allclose(half, whole / 2, atol=1e-3)


def test_every_wrong_input_is_answered(run: Run, patch_file: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    out, diff = ["-o", tmp_path / "baked"], ["patch", "diff", "iconworld-llava"]
    wrong = {
        "no patch file": (["bake", "iconworld-llava", tmp_path / "none.safetensors", *out], "no such patch"),
        "no patches": (["bake", "iconworld-llava", *out], "Missing argument"),
        "no output": (["bake", "iconworld-llava", patch_file], "Missing option"),
        "no such model": (["bake", "nothing", patch_file, *out], "iconworld-llava"),
        "Hub id that is not cached": (["bake", "no-such/model", patch_file, *out], "hf download no-such/model"),
        "output exists": (["bake", "iconworld-llava", patch_file, "-o", tmp_path / "full"], "exists already"),
        "output under a file": (["bake", "iconworld-llava", patch_file, "-o", patch_file / "x"], "cannot write"),
        "the same twice": (["bake", "iconworld-llava", patch_file, patch_file, *out], "same patch twice"),
        "too many scales": (["bake", "iconworld-llava", patch_file, *out, "--scale", 1, "--scale", 2], "one finite scale"),
        "scale a word": (["bake", "iconworld-llava", patch_file, *out, "--scale", "big"], "Invalid value"),
        "unknown link": (["bake", "iconworld-llava", patch_file, *out, "--link", "soft"], "copy, reflink, hard"),
        "diff of the same": ([*diff, "iconworld-llava", "-o", tmp_path / "d.safetensors"], "the same weights"),
        "diff to nowhere": ([*diff, "iconworld-llava", "-o", tmp_path / "none" / "d.safetensors"], "cannot write"),
        "diff with no model": ([*diff, "nothing", "-o", tmp_path / "d.safetensors"], "no such model"),
    }  # fmt: skip
    for name, (arguments, words) in wrong.items():
        code, stdout, stderr = run(*arguments)
        assert code == 2, f"{name}: exit code {code}\n{stderr}"
        assert words in stderr and not stdout and "Traceback" not in stderr, f"{name}: {stderr}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "p.safetensors"]


@pytest.mark.parametrize("command", [["bake"], ["patch", "diff"]])
def test_help_does_not_import_torch(command: list[str]) -> None:
    code = f"import sys; sys.argv = ['mmedit', *{command!r}, '--help']\nfrom mmedit.cli import main\ntry: main()\nexcept SystemExit as e: assert not e.code\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Usage" in done.stdout, done.stderr

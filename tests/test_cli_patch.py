"""`mmedit patch merge` and `mmedit patch stack-check`: results on stdout; wrong input gives exit code 2, no traceback, no file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_cli import run
from test_patch import random_patch

import mmedit
from mmedit.patches.conflicts import conflicts, table
from mmedit.testbed.checkpoint import build_llava

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return lambda *arguments: run(capfd, monkeypatch, *arguments)


@pytest.fixture
def files(trained: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, tmp_path: Path) -> list[Path]:
    """Two edits of the shipped model, cat→dog and cat→boat, saved."""
    editor, paths = mmedit.editors.MMNeurons.from_hparams("iconworld-llava"), []
    for target in ("dog", "boat"):
        paths.append(tmp_path / f"cat-to-{target}.safetensors")
        editor.execute(trained, mmedit.EditRequest(request_of_cat.images, "cat", target)).save(paths[-1])
    return paths


def test_merge(cli: Cli, files: list[Path], tmp_path: Path, vlm: mmedit.VisionLanguageModel) -> None:
    both, out = [mmedit.Patch.load(file) for file in files], tmp_path / "both.safetensors"
    code, printed, _ = cli("patch", "merge", *files, "-o", out)
    assert code == 0 and "cat→dog, cat→boat" in printed and "2 edits of 5 neurons" in printed and str(out) in printed
    assert mmedit.Patch.load(out).digest == mmedit.merge(both).digest
    with mmedit.Patch.load(out).applied(vlm):
        stacked = {str(site): vlm.architecture.w_out(site).matrix.clone() for site in both[0].sites}
    with mmedit.stack(vlm, both):
        assert all(torch.equal(stacked[str(site)], vlm.architecture.w_out(site).matrix) for site in both[0].sites)
    settings = ["--method", "ties", "--weight", 2, "--weight", "-0.5", "--density", 0.5, "--json"]
    code, printed, _ = cli("patch", "merge", *files, "-o", out, *settings)
    result, expected = json.loads(printed), mmedit.merge(both, "ties", [2.0, -0.5], density=0.5)
    assert code == 0 and result["digest"] == expected.digest == mmedit.Patch.load(out).digest
    assert result["hparams"] == dict(expected.hparams) and [edit["target"] for edit in result["edits"]] == [
        "dog",
        "boat",
    ]
    code, printed, _ = cli("patch", "merge", *files, "-o", out, "--method", "dare", "--seed", 3, "--json")
    assert json.loads(printed)["digest"] == mmedit.merge(both, "dare", seed=3).digest
    code, printed, _ = cli("patch", "show", out)
    assert code == 0 and "method=dare" in printed


def test_stack_check(cli: Cli, files: list[Path], vlm: mmedit.VisionLanguageModel) -> None:
    both = [mmedit.Patch.load(file) for file in files]
    code, printed, _ = cli("patch", "stack-check", *files)
    assert (code, printed) == (0, table(conflicts(both)) + "\n") and "same source" in printed and "unknown" in printed
    code, printed, _ = cli("patch", "stack-check", *files, "--model", "iconworld-llava")
    assert (code, printed) == (0, table(conflicts(both, vlm)) + "\n") and "unknown" not in printed
    code, printed, _ = cli("patch", "stack-check", *files, "--model", "iconworld-llava", "--json")
    found = json.loads(printed)
    assert code == 0 and found == [{"files": list(map(str, files)), **conflicts(both, vlm)[0].to_dict()}]
    assert len(found[0]["shared"]) == 5 and all(gain > 0 for gain in found[0]["gains"])


def test_every_wrong_input_is_answered(cli: Cli, files: list[Path], cat_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    stranger, cut = tmp_path / "stranger.safetensors", tmp_path / "cut.safetensors"
    other = build_llava(mmedit.load("iconworld-llava").processor, seed=3)
    random_patch(other, 1, n_units=24).save(stranger)
    random_patch(other, 2, n_units=24).save(tmp_path / "stranger2.safetensors")
    cut.write_bytes(files[0].read_bytes()[:-100])
    merge: list[object] = ["patch", "merge", *files, "-o", out]
    wrong: dict[str, tuple[list[object], str]] = {
        "no output": (["patch", "merge", *files], "Missing option"),
        "no files": (["patch", "merge", "-o", out], "Missing argument"),
        "missing patch": (["patch", "merge", tmp_path / "none.safetensors", "-o", out], "no such patch"),
        "picture as patch": (["patch", "merge", cat_file, "-o", out], "not a patch"),
        "cut patch": (["patch", "merge", files[0], cut, "-o", out], "cut.safetensors"),
        "unknown method": ([*merge, "--method", "slerp"], "sum, mean, ties, dare"),
        "one weight for two": ([*merge, "--weight", "1"], "one finite weight"),
        "weight that is no number": ([*merge, "--weight", "1", "--weight", "much"], "Invalid value"),
        "infinite weight": ([*merge, "--weight", "1", "--weight", "inf"], "one finite weight"),
        "density with sum": ([*merge, "--density", "0.5"], "no density for sum"),
        "density of nothing": ([*merge, "--method", "ties", "--density", "0"], "above 0"),
        "no output folder": (["patch", "merge", *files, "-o", tmp_path / "none" / "o.safetensors"], "cannot write"),
        "output is a folder": (["patch", "merge", *files, "-o", tmp_path], "a folder"),
        "one patch to compare": (["patch", "stack-check", files[0]], "two patches"),
        "cut patch to compare": (["patch", "stack-check", files[0], cut], "cut.safetensors"),
        "unknown model": (["patch", "stack-check", *files, "--model", "no-such-model"], "iconworld-llava"),
        "patches of another model": (
            ["patch", "stack-check", stranger, tmp_path / "stranger2.safetensors", "--model", "iconworld-llava"], "another model",
        ),
    }  # fmt: skip
    for name, (arguments, words) in wrong.items():
        code, printed, err = cli(*arguments)
        assert code == 2, f"{name}: exit code {code}\n{err}"
        assert words in err and not printed and "Traceback" not in err, f"{name}: {err}"
    assert not out.exists() and not list(tmp_path.glob("**/*.part"))


@pytest.mark.parametrize("command", ["merge", "stack-check"])
def test_help_does_not_import_torch(command: str) -> None:
    code = f"import sys; sys.argv = ['mmedit', 'patch', '{command}', '--help']\nfrom mmedit.cli import main\ntry: main()\nexcept SystemExit as e: assert not e.code\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout

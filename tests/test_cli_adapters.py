"""`mmedit patch to-lora, verify, push, pull`: results on stdout, every wrong input an error with exit code 2 and no traceback."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_cli import run
from test_hub import StandIn

import mmedit
from mmedit.patches import hub
from mmedit.patches.base import Base

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return lambda *arguments: run(capfd, monkeypatch, *arguments)


@pytest.fixture
def patch(trained: mmedit.VisionLanguageModel) -> mmedit.Patch:
    """Two rows of the shipped model."""
    site, units = mmedit.Site(4), torch.tensor([3, 77])
    edit = {"source": "cat", "target": "dog", "neurons": ["L4.U3", "L4.U77"]}
    rows = trained.architecture.w_out(site).rows(units)
    return mmedit.Patch({site: (units, torch.ones(2, 128))}, {site: rows}, Base.of(trained), "MMNeurons", {}, (edit,))


@pytest.fixture
def file(patch: mmedit.Patch, tmp_path: Path) -> Path:
    patch.save(tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def test_to_lora(cli: Cli, vlm: mmedit.VisionLanguageModel, patch: mmedit.Patch, file: Path, tmp_path: Path) -> None:
    code, out, _ = cli("patch", "to-lora", file, "-o", tmp_path / "adapter")
    assert code == 0 and "cat→dog: rank 8, modules: 1" in out and f"saved {tmp_path / 'adapter'}" in out
    assert mmedit.Patch.from_lora(tmp_path / "adapter", vlm).digest == patch.digest
    code, out, _ = cli("patch", "to-lora", file, "-o", tmp_path / "other", "--model", "iconworld-llava", "--json")
    done = json.loads(out)
    assert code == 0 and (done["adapter"], done["rank"]) == (str(tmp_path / "other"), 8)
    assert done["target_modules"] == ["model.language_model.layers.4.mlp.down_proj"] and done["off"] < done["moved"]


def test_verify(cli: Cli, file: Path) -> None:
    code, out, err = cli("patch", "verify", file)
    assert (code, err) == (0, "") and "'dog' where it says 'cat'" in out and "unknown  base" in out
    code, out, _ = cli("patch", "verify", file, "--model", "iconworld-llava", "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] is True and all(check["ok"] for check in found["checks"])
    assert any("while active it writes more" in line for line in found["words"])


def test_verify_says_no_by_its_exit_code(cli: Cli, patch: mmedit.Patch, file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-10])
    patch.scaled(0.0).save(tmp_path / "nothing.safetensors")
    elsewhere = {site: rows + 1 for site, rows in patch.base_rows.items()}
    dataclasses.replace(patch, base_rows=elsewhere).save(tmp_path / "other.safetensors")
    for name, words in {
        "cut": "cannot read",
        "none": "no such patch",
        "nothing": "nothing but zeros",
        "other": "off by up to",
    }.items():
        path = tmp_path / f"{name}.safetensors"
        code, out, err = cli("patch", "verify", path, "--model", "iconworld-llava")
        assert code == 2 and "FAILED" in out and words in out and "do not use" in out and "Traceback" not in err
        code, out, _ = cli("patch", "verify", path, "--model", "iconworld-llava", "--json")
        assert code == 2 and json.loads(out)["ok"] is False


def test_push_and_pull(
    cli: Cli, patch: mmedit.Patch, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is stood for, as in test_hub.py."""
    net = StandIn(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", net)
    monkeypatch.setattr(hub, "hf_hub_download", net.download)
    code, out, _ = cli("patch", "push", file, "me/x", "--branch", "dev", "--private", "--message", "first")
    assert code == 0 and out.startswith(f"pushed {file} to https://huggingface.co/me/x/commit/")
    assert net.options("create_repo")["private"] is True and net.options("upload_folder")["revision"] == "dev"
    code, out, _ = cli("patch", "push", file, "me/x", "--create-pr", "--json")
    assert code == 0 and json.loads(out)["url"].endswith("/discussions/1")
    code, out, _ = cli("patch", "pull", "me/x", "-o", tmp_path / "q.safetensors", "--revision", "dev")
    assert code == 0 and "cat→dog, on iconworld-llava" in out and net.options("model_info")["revision"] == "dev"
    assert mmedit.Patch.load(tmp_path / "q.safetensors").digest == patch.digest
    code, out, _ = cli(
        "patch", "pull", "me/x", "-o", tmp_path / "q.safetensors", "--filename", "patch.safetensors", "--json"
    )
    assert code == 0 and json.loads(out)["digest"] == patch.digest
    net.error = ConnectionError("no network")
    for arguments in (["push", file, "me/x"], ["pull", "me/x", "-o", tmp_path / "r.safetensors"]):
        code, out, err = cli("patch", *arguments)
        assert code == 2 and not out and "no network" in err and "Traceback" not in err
    assert not (tmp_path / "r.safetensors").exists()


def test_every_wrong_input_is_answered(cli: Cli, patch: mmedit.Patch, file: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    unknown = dataclasses.replace(patch, base=dataclasses.replace(patch.base, model="no-such-model"))
    unknown.save(tmp_path / "unknown.safetensors")
    adapter, none = tmp_path / "adapter", tmp_path / "none.safetensors"
    wrong: dict[str, tuple[list[object], str]] = {
        "no such patch": (["to-lora", none, "-o", adapter], "no such patch"),
        "no output": (["to-lora", file], "Missing option"),
        "folder with other things": (["to-lora", file, "-o", tmp_path / "full"], "exists already"),
        "folder with other things, told before a model is loaded": (["to-lora", file, "-o", tmp_path / "full", "--model", "nothing"], "exists already"),
        "file as folder": (["to-lora", file, "-o", file], "exists already"),
        "no parent": (["to-lora", file, "-o", tmp_path / "no" / "adapter"], "cannot write"),
        "base that is nowhere": (["to-lora", tmp_path / "unknown.safetensors", "-o", adapter], "no-such-model"),
        "unknown model": (["to-lora", file, "-o", adapter, "--model", "nothing"], "no such model"),
        "unknown dtype": (["to-lora", file, "-o", adapter, "--dtype", "int3"], "no such dtype"),
        "verify against nothing": (["verify", file, "--model", "nothing"], "no such model"),
        "push nothing": (["push", none, "me/x"], "no such patch"),
        "push a text": (["push", tmp_path / "full" / "mine.txt", "me/x"], "not a patch"),
        "pull of code": (["pull", "me/x", "-o", adapter, "--filename", "x.py"], "is a .safetensors file"),
        "pull into nowhere": (["pull", "me/x", "-o", tmp_path / "no" / "x"], "cannot write"),
        "pull onto a folder": (["pull", "me/x", "-o", tmp_path], "a folder"),
    }  # fmt: skip
    for name, (arguments, words) in wrong.items():
        code, out, err = cli("patch", *arguments)
        assert code == 2 and words in err and not out and "Traceback" not in err, f"{name}: {code}\n{err}"
    assert not adapter.exists() and [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("command", ["to-lora", "verify", "push", "pull"])
def test_help_does_not_import_torch(command: str) -> None:
    code = (
        f"import sys; sys.argv = ['mmedit', 'patch', {command!r}, '--help']\nfrom mmedit.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'transformers', 'huggingface_hub', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout and "--json" in done.stdout

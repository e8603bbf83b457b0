"""`mmedit convert`: results on stdout, every wrong input a clear error with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from original_llava import speaking, without_image_token, write_original

import mmedit
from mmedit.cli import main

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trained: mmedit.VisionLanguageModel) -> Path:
    path = tmp_path_factory.mktemp("original") / "llava-v1-tiny"
    return write_original(path, speaking(trained, linear=True), without_image_token(trained.processor), shards=2)


def test_convert_then_caption(run: Run, folder: Path, cat_file: Path, tmp_path: Path) -> None:
    code, out, err = run("convert", folder, "-o", tmp_path / "new", "--json")
    assert code == 0 and json.loads(out) == {"folder": str(tmp_path / "new"), "conversation": "llava_v1", "dtype": "float32"}, err  # fmt: skip
    said = [run("caption", cat_file, "--model", path)[1] for path in (folder, tmp_path / "new")]
    assert said[0] == said[1] and said[0].strip()
    tower = (folder / "clip_tower").rename(tmp_path / "tower")
    code, out, err = run("convert", folder, "-o", tmp_path / "half", "--dtype", "bfloat16", "--vision-tower", tower)
    tower.rename(folder / "clip_tower")
    assert code == 0 and "llava_v1, by the name of" in out and "bfloat16" in out and f"wrote {tmp_path / 'half'}" in out, err  # fmt: skip
    assert mmedit.load(tmp_path / "half").model.dtype.itemsize == 2


def test_every_wrong_input_is_answered(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    out = ["-o", tmp_path / "new"]
    wrong = {
        "no output": (["convert", folder], "Missing option"),
        "no such folder": (["convert", tmp_path / "none", *out], "no such model"),
        "another format": (["convert", "iconworld-llava", *out], "not a LLaVA in its original format"),
        "output exists": (["convert", folder, "-o", tmp_path / "full"], "exists already"),
        "output inside": (["convert", folder, "-o", folder / "new"], "inside the checkpoint"),
        "no such tower": (["convert", folder, *out, "--vision-tower", tmp_path / "none"], "--vision-tower"),
        "no such dtype": (["convert", folder, *out, "--dtype", "int8"], "float32, bfloat16 or float16"),
    }  # fmt: skip
    for name, (arguments, words) in wrong.items():
        code, stdout, stderr = run(*arguments)
        assert code == 2, f"{name}: exit code {code}\n{stderr}"
        assert words in stderr and not stdout and "Traceback" not in stderr, f"{name}: {stderr}"
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_help_does_not_import_torch() -> None:
    code = "import sys; sys.argv = ['mmedit', 'convert', '--help']\nfrom mmedit.cli import main\ntry: main()\nexcept SystemExit as e: assert not e.code\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Usage" in done.stdout, done.stderr

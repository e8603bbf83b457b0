"""The command line: results on stdout, and every wrong input a clear error with exit code 2 and no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmedit
from mmedit.cli import main
from mmedit.testbed.checkpoint import build_llava


def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str, str]:
    """Run `mmedit …` in this process; returns exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["mmedit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capfd.readouterr()
    return stopped.value.code, out, err  # type: ignore[return-value]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    return lambda *arguments: run(capfd, monkeypatch, *arguments)


@pytest.fixture
def patch_file(trained: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, tmp_path: Path) -> Path:
    path = tmp_path / "patch.safetensors"
    mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(trained, request_of_cat).save(path)
    return path


def test_caption(cli, cat_file: Path, trained: mmedit.VisionLanguageModel) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = cli("caption", cat_file, cat_file)
    assert (code, out) == (0, f"{cat_file}: {trained.caption(cat_file)[0]}\n" * 2)
    code, out, _ = cli("caption", cat_file, "--prompt", "Is there a cat?", "--json")
    assert (code, json.loads(out)) == (0, [{"image": str(cat_file), "caption": "yes"}])


def test_locate(cli, cat_file: Path, trained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    expected = mmedit.locate_word(trained, cat_file, "cat", k=3)
    code, out, _ = cli("locate", cat_file, "--source", "cat", "--k", 3, "--save", tmp_path / "r.json")
    assert code == 0 and str(expected) in out
    assert mmedit.NeuronRanking.load(tmp_path / "r.json").neurons == expected.neurons
    code, out, _ = cli("locate", cat_file, "--json", "--layer", 5)
    found = json.loads(out)
    assert found[0]["source"] == "cat" and len(found) == 2
    assert all(neuron["neuron"].startswith("L5.") for ranking in found for neuron in ranking["neurons"])


def test_edit_then_show(cli, cat_file: Path, tmp_path: Path, trained: mmedit.VisionLanguageModel) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "p.safetensors"
    code, out, _ = cli("edit", cat_file, "--source", "cat", "--target", "dog", "-o", file)
    assert code == 0 and "after:" in out and str(file) in out
    before = trained.caption(cat_file)[0]
    with mmedit.Patch.load(file).applied(trained):
        assert trained.caption(cat_file) == [before.replace("cat", "dog")]
    code, out, _ = cli("patch", "show", file)
    assert code == 0 and "cat→dog" in out and "iconworld-llava" in out
    code, out, _ = cli("patch", "show", file, "--json")
    shown = json.loads(out)
    assert [neuron["neuron"] for neuron in shown["neurons"]] == [str(n) for n in mmedit.Patch.load(file).neurons]
    code, out, _ = cli("edit", cat_file, "--source", "cat", "--target", "dog", "-o", file, "--json")
    assert json.loads(out)["captions"][0]["swapped"] is True


def test_demo_does_the_main_job(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = cli("demo", "-o", tmp_path / "demo", "--json")
    result = json.loads(out)
    assert code == 0 and result["reverted"] is True
    assert result["after"][0] == result["before"][0].replace("cat", "dog") != result["before"][0]
    swapped = ["cat" in old.split() and new == old.replace("cat", "dog") for old, new in zip(result["before"], result["after"], strict=True)]  # fmt: skip
    same = [old == new for old, new in zip(result["before"], result["after"], strict=True)]
    assert result["counts"] == {
        "edit": "1 of 1", "related": f"{sum(swapped[1:9])} of 8", "unrelated": f"{sum(same[9:])} of 16",
    }  # fmt: skip
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(result["before"]) == 25 and '[1, " dog"]' in page
    assert "cat → dog" in page and str(mmedit.Patch.load(result["patch"]).neurons[0]) in page
    assert mmedit.Patch.load(result["patch"]).name == "cat→dog"


def wrong_inputs(folder: Path, cat: Path) -> dict[str, tuple[list[object], str]]:
    """Commands that cannot work, each with words of the answer."""
    (folder / "text.png").write_text("not a picture")
    (folder / "cut.png").write_bytes(cat.read_bytes()[:-40] if cat.stat().st_size > 400 else b"")
    (folder / "empty").mkdir()
    (folder / "broken.yaml").write_text("lr: [1, 2\nbeta")
    (folder / "typo.yaml").write_text("learning_rate: 0.1\n")
    (folder / "word.yaml").write_text("lr: fast\n")
    (folder / "range.yaml").write_text("lr: -1\n")
    swap: list[object] = ["edit", cat, "--source", "cat", "--target", "dog", "-o", folder / "p.safetensors"]
    return {
        "missing picture": (["caption", folder / "none.png"], "no such picture"),
        "text file": (["caption", folder / "text.png"], "not a picture"),
        "truncated picture": (["caption", folder / "cut.png"], "picture"),
        "folder as picture": (["caption", folder], "a folder"),
        "source not said": (["locate", cat, "--source", "robot"], "nouns: cat"),
        "source not said, edit": ([*swap[:3], "robot", *swap[4:]], "nouns: cat"),
        "same words": ([*swap[:5], "Cat", *swap[6:]], "the same word"),
        "unknown model": (["caption", cat, "--model", "no-such-model"], "iconworld-llava"),
        "folder without config": (["caption", cat, "--model", folder / "empty"], "no config.json"),
        "unknown dtype": (["caption", cat, "--dtype", "int3"], "no such dtype"),
        "broken YAML": ([*swap, "--hparams", folder / "broken.yaml"], "broken.yaml"),
        "unknown key": ([*swap, "--hparams", folder / "typo.yaml"], "'learning_rate'"),
        "wrong type": ([*swap, "--hparams", folder / "word.yaml"], "word.yaml, key lr"),
        "out of range": ([*swap, "--hparams", folder / "range.yaml"], "range.yaml, key lr"),
        "no such hparams": ([*swap, "--hparams", "nothing"], "iconworld-llava"),
        "unknown editor": ([*swap, "--editor", "ROME2"], "MMNeurons"),
        "no output folder": ([*swap[:7], folder / "none" / "p.safetensors"], "cannot write"),
        "output under a file": ([*swap[:7], cat / "p.safetensors"], "cannot write"),
        "output is a folder": ([*swap[:7], folder], "a folder"),
        "demo under a file": (["demo", "-o", cat / "demo"], "cannot make or write this folder"),
        "demo of another thing": (["demo", "--source", "unicorn"], "unicorn"),
        "negative layer": (["locate", cat, "--layer", "-1"], "layers from 0 to 5"),
        "no neurons": (["locate", cat, "--k", "0"], "at least one neuron"),
        "save without source": (["locate", cat, "--save", folder / "r.json"], "--save needs --source"),
        "prefix alone": (["caption", cat, "--prefix", "A"], "--prefix goes with --prompt"),
        "missing patch": (["patch", "show", folder / "none.safetensors"], "no such patch"),
        "picture as patch": (["patch", "show", cat], "not a patch"),
        "no pictures": (["caption"], "Missing argument"),
        "unknown command": (["capture"], "No such command"),
        "unknown option": (["caption", cat, "--colour"], "No such option"),
    }  # fmt: skip


def test_every_wrong_input_is_answered(cli, tmp_path: Path, cat_file: Path) -> None:  # type: ignore[no-untyped-def]
    for name, (arguments, words) in wrong_inputs(tmp_path, cat_file).items():
        code, out, err = cli(*arguments)
        assert code == 2, f"{name}: exit code {code}\n{err}"
        assert words in err and not out and "Traceback" not in err, f"{name}: {err}"
    assert not list(tmp_path.glob("**/*.part")) and not (tmp_path / "p.safetensors").exists()


def test_a_truncated_patch_and_one_for_another_model_are_refused(
    cli,
    patch_file: Path,
    processor,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(patch_file.read_bytes()[:-100])
    code, _, err = cli("patch", "show", cut)
    assert code == 2 and "cut.safetensors" in err and "Traceback" not in err
    with pytest.raises(mmedit.errors.BaseMismatchError):
        mmedit.Patch.load(patch_file).apply(build_llava(processor, seed=3))


@pytest.mark.parametrize(
    "arguments", [[], ["patch"], ["caption"], ["locate"], ["edit"], ["eval"], ["demo"], ["patch", "show"]]
)
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    code = f"import sys; sys.argv = ['mmedit', *{arguments!r}, '--help']\nfrom mmedit.cli import main\ntry: main()\nexcept SystemExit as e: assert not e.code\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_installed_command_answers(cat_file: Path) -> None:
    """A real process: exit code, stdout, stderr."""
    command = [str(Path(sys.executable).with_name("mmedit")), "caption", str(cat_file.with_name("none.png"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no such picture\n  where: ") and "Traceback" not in done.stderr

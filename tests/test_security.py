"""Strangers' files: nothing in them is run, leads elsewhere, reaches the environment, moves the cursor or fills the memory."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mmedit
from mmedit.analysis import figures
from mmedit.analysis import report as study_report
from mmedit.analysis.picture_sets import PictureSet
from mmedit.analysis.specificity import Heatmap
from mmedit.analysis.study import Section, Study, Table
from mmedit.analysis.survey import Concept, Ranked, Surveyed
from mmedit.cli import main
from mmedit.data.pictured import Pictured
from mmedit.errors import HparamsError, ImageError, MmeditError, ModelError, PatchError
from mmedit.evaluation.page import write_report
from mmedit.files import replacing
from mmedit.models.checkpoint_files import CHECKPOINTS
from mmedit.models.images import load_image
from mmedit.patches.checkpoint import open_checkpoint
from mmedit.patches.new_folder import new_folder

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("mmedit", "editors", "hparams") for path in sorted((ROOT / folder).rglob("*.py"))]
ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202egpj"
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MARKUP = "<script>alert(1)</script>'\"&"
Run = Callable[..., tuple[int, str]]


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every call in the library: where, of what, and its keywords that are constants."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                words = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
                yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), words


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: its exit code, and all that it prints."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmedit", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        return code, "".join(capsys.readouterr())

    return call


@pytest.fixture
def patch() -> mmedit.Patch:
    base, site = open_checkpoint("iconworld-llava"), mmedit.Site(2)
    rows = base.w_out(site).read(slice(7, 9))
    edit = {"source": "cat", "target": "dog"}
    return mmedit.Patch(
        {site: (torch.tensor([7, 8]), torch.ones(2, 128))}, {site: rows}, base.base, "test", {}, (edit,)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped checkpoint, for a stranger to spoil."""
    return Path(shutil.copytree(CHECKPOINTS / "iconworld-llava", tmp_path / "stranger"))


# --- code -------------------------------------------------------------------------------------------------------------


class Evil:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_no_source_unpickles_or_runs_what_it_reads() -> None:
    seen = list(calls())
    assert len(SOURCES) > 100 and len(seen) > 5000
    for where, name, words in seen:
        assert name not in ("eval", "exec", "compile", "os.system", "os.popen", "__import__"), where
        assert not re.match(r"(pickle|cPickle|dill|joblib|marshal|shelve)\.", name), where
        assert not (name.endswith(("np.load", "numpy.load")) and words.get("allow_pickle")), where
        assert name != "torch.load" or words.get("weights_only") is True, where
        assert name not in ("yaml.load", "yaml.unsafe_load", "OmegaConf.resolve", "OmegaConf.register_new_resolver"), (
            where
        )
        assert name != "OmegaConf.to_container" or words.get("resolve") is False, where
        assert words.get("trust_remote_code") is not True and words.get("shell") is not True, where


def test_no_weights_of_a_stranger_are_unpickled(folder: Path, tmp_path: Path, patch: mmedit.Patch) -> None:
    evil = Evil(tmp_path / "was here")
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": evil}, folder / "pytorch_model.bin")
    (tmp_path / "p.safetensors").write_bytes(pickle.dumps(evil))
    (tmp_path / "adapter").mkdir()
    patch.to_lora(tmp_path / "lora")
    shutil.copy(tmp_path / "lora" / "adapter_config.json", tmp_path / "adapter")
    torch.save({"x": evil}, tmp_path / "adapter" / "adapter_model.bin")
    torch.save({"x": evil}, tmp_path / "adapter" / "adapter_model.safetensors")
    vlm = mmedit.load("iconworld-llava")
    for act in (
        lambda: mmedit.load(folder), lambda: mmedit.bake(folder, [patch], tmp_path / "out"),
        lambda: mmedit.Patch.load(tmp_path / "p.safetensors"), lambda: mmedit.Patch.from_lora(tmp_path / "adapter", vlm),
    ):  # fmt: skip
        with pytest.raises(MmeditError):
            act()
    assert not (tmp_path / "was here").exists()


def test_code_in_a_checkpoint_is_not_run_unless_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            values = json.loads((folder / name).read_text())
            values |= {"model_type": "stranger"} if name == "config.json" else {}
            values["auto_map"] = dict.fromkeys(["AutoConfig", "AutoProcessor", "AutoTokenizer", "AutoModelForImageTextToText"], "evil.Evil")  # fmt: skip
            (folder / name).write_text(json.dumps(values))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'was here')!r})\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # nobody is there to be asked, and nobody is
    with pytest.raises(ModelError, match="cannot load this model"):
        mmedit.load(folder)
    assert not (tmp_path / "was here").exists()
    assert mmedit.load.__defaults__ and mmedit.load.__defaults__[3] is False


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret.safetensors", "/{0}/secret.safetensors", "a/../../secret.safetensors", "..", "", "x\x00.safetensors"])  # fmt: skip
def test_an_index_does_not_lead_out_of_its_folder(folder: Path, patch: mmedit.Patch, tmp_path: Path, name: str) -> None:
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (folder / "a").mkdir()
    with safe_open(tmp_path / "secret.safetensors", framework="pt") as file:
        names = list(file.keys())
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, name.format(tmp_path))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError):
        mmedit.bake(folder, [patch], tmp_path / "out")
    with pytest.raises(ModelError):
        mmedit.load(folder)


# --- the environment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["${oc.env:SECRET_OF_TEST}", "${oc.decode:${oc.env:SECRET_OF_TEST}}", "${lr}", "${oc.create:1}", "!!python/object/apply:os.mkdir ['{}']"])  # fmt: skip
def test_hyperparameters_do_not_reach_the_environment(
    tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", "0.125")
    value = value.replace("{}", str(tmp_path / "was here"))
    (tmp_path / "h.yaml").write_text(f"epochs: 10\nlr: {value}\n")
    with pytest.raises(HparamsError) as caught:
        mmedit.editors.MMNeurons.from_hparams(tmp_path / "h.yaml")
    assert "0.125" not in str(caught.value) and not (tmp_path / "was here").exists()
    with pytest.raises(HparamsError) as caught:
        mmedit.editors.MMNeurons.from_hparams({"lr": value})
    assert "0.125" not in str(caught.value)


# --- terminals and pages ----------------------------------------------------------------------------------------------


def test_no_command_prints_what_a_terminal_would_obey(run: Run, patch: mmedit.Patch, tmp_path: Path) -> None:
    file = tmp_path / f"{ESCAPE}.safetensors"
    stranger = replace(patch, hparams={f"k{ESCAPE}": f"v{ESCAPE}"}, evaluation={"note": ESCAPE}, edits=({"source": f"cat{ESCAPE[-4:]}", "target": "dog"},))  # fmt: skip
    stranger.save(file)
    other = tmp_path / "other.safetensors"
    replace(patch, deltas={s: (u, r * 2) for s, (u, r) in patch.deltas.items()}).save(other)
    baked = tmp_path / f"baked{ESCAPE}"
    for arguments in (
        ["patch", "show", file], ["patch", "verify", file], ["patch", "stack-check", file, other],
        ["patch", "merge", file, other, "-o", tmp_path / f"m{ESCAPE}.safetensors"], ["bake", "iconworld-llava", file, "-o", baked],
        ["patch", "diff", "iconworld-llava", baked, "-o", tmp_path / f"d{ESCAPE}.safetensors"],
        ["patch", "to-lora", file, "-o", tmp_path / f"l{ESCAPE}"],
        ["patch", "show", tmp_path / f"none{ESCAPE}"], ["caption", tmp_path / f"none{ESCAPE}.png"], ["locate", tmp_path / f"n{ESCAPE}", "--source", ESCAPE],
        ["patch", "show", file, "--json"],
    ):  # fmt: skip
        code, out = run(*arguments)
        assert code in (0, 2) and out, arguments
        assert not OBEYED.search(out.replace("\n", "")), f"{arguments}: {out!r}"
    assert baked.is_dir()


def test_no_source_prints_past_the_one_function_that_escapes() -> None:
    """`say` and `print_json` escape; `typer.echo` and `print` do not."""
    allowed = {
        "mmedit/cli/options.py",
        "mmedit/cli/__init__.py",
        "mmedit/testbed/measure.py",
        "mmedit/testbed/train.py",
    }
    for where, name, _ in calls():
        assert (
            name not in ("typer.echo", "click.echo", "print", "sys.stdout.write") or where.split(":")[0] in allowed
        ), where


def test_a_page_shows_markup_in_names_as_text(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, tmp_path: Path) -> None:  # fmt: skip
    named = mmedit.VisionLanguageModel(vlm.model, vlm.processor, f"model{MARKUP}")
    made = mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat)
    made = replace(made, edits=({**made.edits[0], "target": f"dog{MARKUP}"},), hparams={f"k{MARKUP}": MARKUP})
    report = mmedit.evaluate(named, made, requests=request_of_cat, cache=False)
    write_report(tmp_path / "report.html", [report])
    page = (tmp_path / "report.html").read_text()
    assert "alert(1)" in page and "<script>alert" not in page


class Shown(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text = list[tuple[str, dict[str, str | None]]](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_of_a_study_shows_what_strangers_say_as_text(vlm: mmedit.VisionLanguageModel, cat_file: Path, tmp_path: Path) -> None:  # fmt: skip
    """Names of models and pictures, captions, words, tokens and errors: no tag, attribute, template or terminal code in them is obeyed."""

    def evil(name: str) -> str:
        return f"{name}{MARKUP}\" onerror='x' {{{{ 7 * 191 }}}}{{% raise %}}{ESCAPE}"

    def study_of(name: Callable[[str], str], folder: str) -> tuple[Study, list[Section]]:
        named = mmedit.VisionLanguageModel(vlm.model, vlm.processor, name("model"))
        picture = Pictured(cat_file, label=name("picture"))
        study = Study(named, PictureSet(name("set"), [picture]), tmp_path / folder, ("contribution",), k=3)
        ranked = Ranked((mmedit.Neuron(1, 2),), (1.0,), ((name("token"),),))
        concept = Concept(name("word"), 0, 5, {"contribution": ranked})
        study.survey = [Surveyed(0, name("label"), name("caption"), (concept,))]  # type: ignore[misc]
        section = Section(
            "own", name("title"), name("text"), [Table("own", (name("head"),), [(name("cell"),)], name("table"))],
            [(cat_file, name("figure"))], [(name("heading"), [(name("panel"), Image.new("RGB", (4, 4)))])], name("refused"),
        )  # fmt: skip
        sections = [*study.run(["layers", "tokens"]), section]
        study_report.write_report(study, sections)
        return study, sections

    shown, plain = (Shown(study_of(name, folder)[0].path("report.html").read_text()) for name, folder in ((evil, "evil"), (str, "plain")))  # fmt: skip
    assert [(tag, [*attributes]) for tag, attributes in shown.tags] == [(tag, [*a]) for tag, a in plain.tags]
    for name in ("model", "set", "label", "caption", "word", "token", "title", "text", "head", "cell", "table", "figure", "heading", "panel", "refused"):  # fmt: skip
        assert f"{name}{MARKUP}" in shown.text.replace("\\'", "'"), name
    assert "{{ 7 * 191 }}" in shown.text and "1337" not in shown.text and "{% raise %}" in shown.text
    everything = shown.text + "".join(filter(None, (value for _, a in shown.tags for value in a.values())))
    assert OBEYED.search(everything.replace("\n", "")) is None


@pytest.mark.filterwarnings("error")
def test_a_heatmap_of_words_that_are_no_mathematics(tmp_path: Path) -> None:
    """Matplotlib reads what stands between dollars as TeX, and stops where it is none."""
    heat = Heatmap(("$\\frac$", "cat\x1b[2J"), (mmedit.Neuron(0, 1),) * 2, np.eye(2, dtype=np.float32))
    figures.save(figures.draw_heatmap(heat, "title"), tmp_path / "heat.png")
    assert (tmp_path / "heat.png").stat().st_size > 1000


def test_studies_and_benchmarks_print_nothing_that_a_terminal_would_obey(
    run: Run, cat_file: Path, tmp_path: Path
) -> None:
    """Of what names they are given, and what their pages show of them."""
    pictures = tmp_path / f"p{ESCAPE}"
    pictures.mkdir()
    shutil.copy(cat_file, pictures / f"cat{ESCAPE}.png")
    record = {"src": f"What is this?{ESCAPE}", "rephrase": f"What is it?{ESCAPE}", "pred": "cat", "alt": "dog", "image": f"cat{ESCAPE}.png", "image_rephrase": f"cat{ESCAPE}.png", "loc": f"What is the sky?{ESCAPE}", "loc_ans": "blue", "m_loc": f"cat{ESCAPE}.png", "m_loc_q": f"What is this?{ESCAPE}", "m_loc_a": f"a cat{ESCAPE}"}  # fmt: skip
    (pictures / "records.json").write_text(json.dumps([record]))
    commands = {
        "study": ["analyse", "tokens", pictures, "-k", 10, "--method", "contribution"],
        "study of none": ["analyse", "tokens", tmp_path / f"none{ESCAPE}"],
        "bench": ["bench", pictures / "records.json", "--format", "mmedit"],
        "bench of none": ["bench", tmp_path / f"none{ESCAPE}.json", "--format", "mmedit"],
    }
    for name, arguments in commands.items():
        for extra in ([], ["--json"]):
            output = tmp_path / f"{name}{extra}{ESCAPE}"
            code, out = run(*arguments, "-o", output, *extra)
            assert code == (2 if "none" in name else 0) and out, out
            out = re.sub("\r[^\r\n\x1b]*", "", out)  # a progress bar
            assert OBEYED.search(out.replace("\n", "")) is None, f"{name}: {out!r}"
            if code == 0:
                page = Shown((output / "report.html").read_text())
                assert "owned" in page.text and OBEYED.search(re.sub("[\n\t]", "", page.text)) is None


# --- memory, and files that are not whole yet -------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that claims so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (20_000, 10_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "bomb.png")
    assert "bomb.png" in str(caught.value)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_not_whole_yet_is_private(tmp_path: Path, patch: mmedit.Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = os.umask(0o022)
    try:
        with replacing(tmp_path / "file") as part:
            part.write_text("x")
            assert mode(part) == 0o600 and part.parent == tmp_path
        with new_folder(tmp_path / "folder") as place:
            assert mode(place) == 0o700
        seen, change = list[int](), Path.chmod
        monkeypatch.setattr(Path, "chmod", lambda self, bits: [seen.append(mode(self)), change(self, bits)])
        patch.save(tmp_path / "p.safetensors")
    finally:
        os.umask(mask)
    assert seen == [0o600], "safetensors writes into the private file that it is given"
    assert mode(tmp_path / "file") == mode(tmp_path / "p.safetensors") == 0o644 and mode(tmp_path / "folder") == 0o755


def test_a_patch_of_another_place_is_not_followed(tmp_path: Path, patch: mmedit.Patch) -> None:
    """A patch names tensors, never files: a key that looks like a path is refused."""
    patch.save(tmp_path / "p.safetensors")
    tensors = load_file(tmp_path / "p.safetensors")
    save_file({**tensors, "../../layers.0.w_out.units": torch.tensor([1])}, tmp_path / "q.safetensors", {"format": "mmedit-patch", "format_version": "1"})  # fmt: skip
    with pytest.raises(PatchError):
        mmedit.Patch.load(tmp_path / "q.safetensors")

"""What the documentation says is true: README block, docstring examples, layering, packaging, fast import."""

from __future__ import annotations

import ast
import configparser
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmedit

ROOT = Path(__file__).parent.parent
ROOTS = {"mmedit": ROOT / "mmedit", "mmedit.editors": ROOT / "editors", "mmedit.hparams": ROOT / "hparams"}
LAYERS = [
    {"mmedit.errors"}, {"mmedit.locks"}, {"mmedit.files", "mmedit.printable", "mmedit.processes"}, {"mmedit.neuron", "mmedit.requests", "mmedit.nouns", "mmedit.hparams"}, {"mmedit.concepts", "mmedit.cases"},
    {"mmedit.models", "mmedit.testbed", "mmedit.data"}, {"mmedit.patches", "mmedit.trace"}, {"mmedit.sightings", "mmedit.rewrites"}, {"mmedit.steps", "mmedit.background"}, {"mmedit.scorers"}, {"mmedit.evaluation", "mmedit.locate"}, {"mmedit.editors"}, {"mmedit.analysis"}, {"mmedit.cli", "mmedit.bridges"}, {"mmedit.__main__"},
]  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the library with its file."""
    for package, folder in ROOTS.items():
        for path in sorted(folder.rglob("*.py")):
            name = ".".join([package, *path.relative_to(folder).with_suffix("").parts])
            yield name.removesuffix(".__init__"), path


def layer_of(name: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if ".".join(name.split(".")[:2]) in layer), None)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_down_only(name: str, path: Path) -> None:
    own = layer_of(name)
    assert own is not None or name == "mmedit", f"{name} is in no layer"
    for other in imported(path):
        above = layer_of(other)
        if own is not None and above is not None:
            assert above <= own, f"{name} imports {other}, which is above it"


@pytest.mark.parametrize("name", [name for name, _ in modules()])
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", sorted(set(mmedit.__all__) - {"__version__"}))
def test_public_names_are_documented(name: str) -> None:
    value = getattr(mmedit, name)
    text = inspect.getdoc(value) or ""
    assert text.split("\n")[0].rstrip().endswith("."), f"{name}: one sentence first"
    if inspect.isfunction(value):
        assert "Args:" in text and "Example:" in text and ">>>" in text, name


def test_readme_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert len(block.splitlines()) <= 22
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert " dog " in out and (tmp_path / "cat-to-dog.safetensors").stat().st_size < 20_000


def test_readme_has_the_two_commands_once() -> None:
    commands = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [command.split()[-1] for command in commands] == ["demo", ".venv/bin/pytest"]
    assert all("-c constraints.txt" in command for command in commands)


def test_every_package_and_data_file_is_shipped() -> None:
    """An explicit package list drops what is forgotten, silently; so compare it with the tree."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    in_tree = {name for name, path in modules() if path.name == "__init__.py"}
    assert listed == in_tree
    patterns = {package: glob.split() for package, glob in config["options.package_data"].items()}
    for package in listed:
        folder = next(
            ROOTS[root] / package.removeprefix(root).lstrip(".").replace(".", "/")
            for root in sorted(ROOTS, reverse=True)
            if package.startswith(root)
        )
        shipped = {path for pattern in patterns.get(package, []) for path in folder.glob(pattern)}
        inner = {path.parent for path in folder.rglob("__init__.py")} - {folder}
        data = {
            p
            for p in folder.rglob("*")
            if p.is_file() and p.suffix not in (".py", ".pyc") and not inner & set(p.parents)
        }
        assert data <= shipped, f"{package} does not ship {sorted(data - shipped)}"


def test_import_is_light() -> None:
    code = "import sys, mmedit; assert not {'torch', 'transformers', 'spacy', 'numpy'} & set(sys.modules); assert 'editors' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_is_one_editors_module() -> None:
    importlib.import_module("mmedit.editors")
    assert "editors" not in sys.modules and "hparams" not in sys.modules


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mmedit.nothing
    assert set(mmedit.__all__) <= set(dir(mmedit))

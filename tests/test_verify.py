"""What a stranger is told of a patch: every check can fail, and nothing is said to be well that was not looked at."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mmedit
from mmedit.patches.base import Base, matrix_digest
from mmedit.patches.verify import Verification, verify
from mmedit.testbed.checkpoint import build_llava


@pytest.fixture
def patch(untrained: mmedit.VisionLanguageModel) -> mmedit.Patch:
    """Two rows of the last layer, moved from the direction that writes token 40 to the one that writes token 50."""
    site, units = mmedit.Site(5), torch.tensor([3, 77])
    w_out, w_u = untrained.architecture.w_out(site), untrained.architecture.w_u
    delta = (w_u[50] - w_u[40]).float().cpu() * torch.tensor([[2.0], [1.0]])
    edit = {"source": "cat", "target": "dog", "neurons": ["L5.U77", "L5.U3"], "scores": [1.0, 0.5]}
    return mmedit.Patch({site: (units, delta)}, {site: w_out.rows(units)}, Base.of(untrained), "test", {}, (edit,))


def saved(patch: mmedit.Patch, folder: Path) -> Path:
    patch.save(folder / "p.safetensors")
    return folder / "p.safetensors"


def outcome(found: Verification) -> dict[str, bool | None]:
    return {check.name: check.ok for check in found.checks}


ALL = {"format": True, "size": True, "shapes": True, "numbers": True, "effect": True, "neurons": True, "base": True}


def test_a_sound_patch_on_its_base_passes_every_check(
    untrained: mmedit.VisionLanguageModel, patch: mmedit.Patch, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in untrained.model.state_dict().items()}
    found = verify(saved(patch, tmp_path), untrained)
    assert found.ok and outcome(found) == ALL
    assert all(torch.equal(tensor, before[name]) for name, tensor in untrained.model.state_dict().items())
    patch.apply(untrained)  # one that is live already is verified as well
    assert verify(tmp_path / "p.safetensors", untrained).ok


def test_without_a_model_the_base_is_unknown(patch: mmedit.Patch, tmp_path: Path) -> None:
    found = verify(saved(patch, tmp_path))
    assert found.ok and outcome(found) == {**ALL, "base": None}
    assert "unknown  base: not compared; made on untrained" in str(found)


def test_it_says_what_the_patch_does(
    untrained: mmedit.VisionLanguageModel, patch: mmedit.Patch, tmp_path: Path
) -> None:
    text = str(verify(saved(patch, tmp_path), untrained))
    assert "Claims to make untrained say 'dog' where it says 'cat'." in text
    length = float(patch.deltas[mmedit.Site(5)][1][0].norm())
    assert f"L5.U3: Δw of length {length:.3g} is added" in text
    more, less = (repr(untrained.tokenizer.decode([token])) for token in (50, 40))
    assert f"L5.U3: while active it writes more {more}" in text and f"and less {less}" in text
    assert text.index("L5.U3:") < text.index("L5.U77:") and text.endswith("all is well")
    bare = str(verify(tmp_path / "p.safetensors", untrained.model))
    assert "while active it writes more 50" in bare  # token ids, where there is no tokenizer


def test_it_is_plain_json(untrained: mmedit.VisionLanguageModel, patch: mmedit.Patch, tmp_path: Path) -> None:
    found = json.loads(json.dumps(verify(saved(patch, tmp_path), untrained).to_dict()))
    assert found["ok"] is True and found["path"] == str(tmp_path / "p.safetensors")
    assert [check["name"] for check in found["checks"]] == list(ALL) and found["words"]


def changed(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> None:
    with safe_open(path, "pt") as file:
        texts = {**file.metadata(), **metadata}
    save_file({**load_file(path), **(tensors or {})}, path, texts)


KEY = "layers.5.w_out"
UNREADABLE = {
    "not there": (lambda path: path.unlink(), "no such patch"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "a folder"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot read this patch"),
    "no patch": (lambda path: save_file({"x": torch.zeros(1)}, path), "not an mmedit patch"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94."), "not a patch"),
    "another version": (lambda path: changed(path, format_version="2"), "another format version"),
    "wrong shape": (lambda path: changed(path, {f"{KEY}.delta": torch.zeros(2, 64)}), "wrong shape"),
    "NaN": (lambda path: changed(path, {f"{KEY}.delta": torch.full((2, 128), float("nan"))}), "finite"),
    "large header": (lambda path: changed(path, note="x" * 3_000_000), "too large for a patch"),
    "terminal codes": (lambda path: changed(path, editor="\x1b[2J"), "control characters"),
    "terminal codes in a word": (lambda path: changed(path, edits='[{"source": "cat\\u001b[2J", "target": "dog"}]'), "control characters"),
    "half a character": (lambda path: changed(path, hparams='{"note": "\\ud800"}'), "damaged metadata"),
    "deep": (lambda path: changed(path, hparams='{"a":' * 40 + "0" + "}" * 40), "nested more than 32"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_does_not_load_is_a_failed_check(patch: mmedit.Patch, tmp_path: Path, case: str) -> None:
    damage, words = UNREADABLE[case]
    path = saved(patch, tmp_path)
    damage(path)
    found = verify(path)
    assert not found.ok and outcome(found) == {"format": False}
    assert words in str(found) and str(path) in found.checks[0].detail and str(found).endswith("do not use this file")
    assert "\x1b" not in str(found)


def failed(patch: mmedit.Patch, folder: Path, vlm: Any = None) -> tuple[set[str], str]:
    found = verify(saved(patch, folder), vlm)
    return {check.name for check in found.checks if check.ok is False}, str(found)


def test_a_patch_that_does_nothing_fails(patch: mmedit.Patch, tmp_path: Path) -> None:
    names, text = failed(patch.scaled(0.0), tmp_path)
    assert names == {"effect"} and "nothing but zeros to L5" in text and "FAILED" in text


def test_a_patch_that_changes_more_than_it_says_fails(patch: mmedit.Patch, tmp_path: Path) -> None:
    edit = {"source": "cat", "target": "dog", "neurons": ["L5.U77"]}
    names, text = failed(dataclasses.replace(patch, edits=(edit,)), tmp_path)
    assert names == {"neurons"} and "also changes L5.U3" in text
    silent = dataclasses.replace(patch, edits=({"source": "cat", "target": "dog"},))
    assert outcome(verify(saved(silent, tmp_path)))["neurons"] is None


def test_a_patch_for_another_model_fails(
    untrained: mmedit.VisionLanguageModel, patch: mmedit.Patch, processor: Any, tmp_path: Path
) -> None:
    names, text = failed(patch, tmp_path, build_llava(processor, seed=1))
    assert names == {"base"} and "off by up to" in text and "while active" not in text
    deeper = dataclasses.replace(patch, base=dataclasses.replace(patch.base, n_layers=7))
    assert failed(deeper, tmp_path, untrained)[0] == {"base"}
    untrained.model.to("meta")
    names, text = failed(patch, tmp_path, untrained)
    assert names == {"base"} and "offloaded" in text


def test_a_low_rank_patch_is_told_as_such(
    untrained: mmedit.VisionLanguageModel, patch: mmedit.Patch, tmp_path: Path
) -> None:
    site = mmedit.Site(2)
    factors = torch.randn(512, 3), torch.randn(3, 128)
    digest = matrix_digest(untrained.architecture.w_out(site).matrix)
    low = dataclasses.replace(patch, low_rank={site: factors}, base_digests={site: digest})
    found = verify(saved(low, tmp_path), untrained)
    assert found.ok and "2 rows of 1 W_out and all of L2 by rank 3" in str(found)
    still = dataclasses.replace(low, low_rank={site: (factors[0], torch.zeros(3, 128))})
    assert failed(still, tmp_path)[0] == {"effect"}

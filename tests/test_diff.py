"""Diff: bake(base, diff(base, edited)) = edited, whatever the checkpoints' files and types, and no other change is passed over."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

import mmedit
from mmedit.errors import BaseMismatchError, ModelError, PatchError
from mmedit.models.architecture import architecture_of
from mmedit.patches import diff as diff_module
from mmedit.patches.base import Base

UNITS = torch.tensor([0, 1023, 1024, 2047])
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
LM_HEAD, NORM = "language_model.lm_head.weight", "language_model.model.norm.weight"


def small_llava(dtype: torch.dtype = torch.bfloat16, n_layers: int = 2) -> Llava:
    """Random weights; W_outs of two blocks of units."""
    tower = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8, projection_dim=16)  # fmt: skip
    text = LlamaConfig(vocab_size=64, hidden_size=24, intermediate_size=2048, num_hidden_layers=n_layers, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
    torch.manual_seed(0)
    return Llava(LlavaConfig(vision_config=tower, text_config=text, image_token_index=4, vision_feature_layer=-1, tie_word_embeddings=False)).to(dtype)  # fmt: skip


def patch_of(model: Any, size: float = 1.0) -> mmedit.Patch:
    """Random rows on every layer."""
    generator, w_outs = torch.Generator().manual_seed(0), architecture_of(model).w_outs
    deltas = {s: (UNITS.clone(), size * torch.randn(4, 24, generator=generator)) for s in w_outs}
    return mmedit.Patch(deltas, {s: w.rows(UNITS) for s, w in w_outs.items()}, Base.of(model), "test")


def change(folder: Path, **tensors: Any) -> None:
    """Rewrite tensors of a checkpoint in one file; None leaves one out."""
    file = folder / "model.safetensors"
    kept = {**load_file(file), **tensors}
    save_file({name: t.contiguous() for name, t in kept.items() if t is not None}, file, {"format": "pt"})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    small_llava().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def edited(base: Path, tmp_path: Path) -> Path:
    patch = patch_of(AutoModelForImageTextToText.from_pretrained(base))
    return mmedit.bake(base, [patch], tmp_path / "edited").folder


@pytest.mark.parametrize("size", [1.0, 1e-3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_baking_the_diff_gives_the_edited_checkpoint(tmp_path: Path, dtype: torch.dtype, size: float) -> None:
    model = small_llava(dtype)
    model.save_pretrained(tmp_path / "base")
    patch = patch_of(model, size)
    mmedit.bake(tmp_path / "base", [patch], tmp_path / "edited")
    found = mmedit.diff(tmp_path / "base", tmp_path / "edited")
    assert found.sites == patch.sites and all(torch.equal(found.units(s), UNITS) for s in found.sites)
    assert all(torch.equal(found.base_rows[s], patch.base_rows[s]) for s in found.sites)
    of_model = Base.of(mmedit.VisionLanguageModel(model, _Processor(), str(tmp_path / "base")))
    assert found.base == dataclasses.replace(of_model, weights="")  # diff reads no other weights than W_outs
    found.save(tmp_path / "p.safetensors")
    mmedit.bake(tmp_path / "base", [mmedit.Patch.load(tmp_path / "p.safetensors")], tmp_path / "again")
    assert _bytes(tmp_path / "again") == _bytes(tmp_path / "edited") != _bytes(tmp_path / "base")


class _Processor:
    class tokenizer:
        pad_token_id = 0


def _bytes(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_any_two_rows_are_told_apart_as_nearly_as_float32_can(tmp_path: Path) -> None:
    """Also where an edit was not made by a patch: exactly in bfloat16 unless a number all but vanishes."""
    for dtype, exact in ((torch.bfloat16, 0.999), (torch.float32, 0.3)):
        torch.manual_seed(1)
        before, after = torch.randn(2, 100_000).to(dtype)
        delta = after.float() - before.float()
        again = (before.float() + delta).to(dtype)
        bound = torch.maximum(before.float().abs(), after.float().abs()) * 2.0**-23
        assert bool(((again.float() - after.float()).abs() <= bound).all())
        assert float((again == after).float().mean()) > exact


def test_files_types_and_names_do_not_matter(base: Path, edited: Path, tmp_path: Path) -> None:
    """Sharded against whole, names of today against older ones, float32 against bfloat16."""
    reference = mmedit.diff(base, edited)
    model = AutoModelForImageTextToText.from_pretrained(edited)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    model.float().save_pretrained(tmp_path / "float")
    model.bfloat16().save_pretrained(tmp_path / "new")
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, tmp_path / "new" / "model.safetensors", {"format": "pt"})  # fmt: skip
    model.save_pretrained(tmp_path / "bin")
    torch.save(load_file(tmp_path / "bin" / "model.safetensors"), tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    for name in ("sharded", "float", "new", "bin"):
        assert mmedit.diff(base, tmp_path / name).digest == reference.digest, name


def test_other_tensors_that_differ_are_named_and_refused_unless_ignored(base: Path, edited: Path) -> None:
    reference = mmedit.diff(base, edited)
    tensors = load_file(edited / "model.safetensors")
    tensors[NORM][3] += 1
    change(edited, **{LM_HEAD: tensors[LM_HEAD] + 1, NORM: tensors[NORM]})
    with pytest.raises(
        PatchError, match=r"2 tensors that are no W_out[\s\S]*lm_head.weight, model.language_model.norm"
    ):
        mmedit.diff(base, edited)
    with pytest.raises(PatchError, match=r"1 tensors that are no W_out[\s\S]*got: lm_head.weight\n"):
        mmedit.diff(base, edited, ignore=["*.norm.*"])
    assert mmedit.diff(base, edited, ignore=["*norm*", "lm_head.weight"]).digest == reference.digest
    assert mmedit.diff(base, edited, ignore="*").digest == reference.digest


@pytest.mark.parametrize("kind", ["missing", "extra", "shape"])
def test_tensors_of_one_checkpoint_only_are_differences(base: Path, edited: Path, kind: str) -> None:
    tensors = load_file(edited / "model.safetensors")
    new = {"missing": {LM_HEAD: None}, "extra": {"more": torch.zeros(2)}, "shape": {LM_HEAD: tensors[LM_HEAD][:-1]}}
    change(edited, **new[kind])
    with pytest.raises(PatchError, match="1 tensors that are no W_out"):
        mmedit.diff(base, edited)
    assert mmedit.diff(base, edited, ignore=["lm_head*", "more"])


def test_a_different_number_is_found_wherever_it_is(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Also beyond the first stretch that is read."""
    monkeypatch.setattr(diff_module, "STRETCH", 100)
    small_llava().save_pretrained(tmp_path / "edited")
    tensors = load_file(tmp_path / "edited" / "model.safetensors")
    for name in (LM_HEAD, NORM, next(name for name in tensors if "patch_embedding" in name)):
        other = tensors[name].clone()
        other.view(-1)[-1] += 1
        change(tmp_path / "edited", **{**tensors, name: other})
        with pytest.raises(PatchError, match="1 tensors that are no W_out"):
            mmedit.diff(base, tmp_path / "edited")


def test_the_same_weights_make_no_patch(base: Path) -> None:
    with pytest.raises(PatchError, match="have the same weights"):
        mmedit.diff(base, base)


def test_minus_zero_is_zero(base: Path, edited: Path) -> None:
    """A sum can make no −0.0 of 0.0, and no output depends on it."""
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    zero, minus = (load_file(folder / "model.safetensors")[name] for folder in (base, edited))
    zero[:, 7], minus[:, 7] = 0.0, -0.0
    change(base, **{name: zero})
    change(edited, **{name: minus})
    assert 7 not in mmedit.diff(base, edited).units(mmedit.Site(0))


def test_what_is_no_edit_of_the_base_is_refused(base: Path, edited: Path, tmp_path: Path, monkeypatch: Any) -> None:
    small_llava(n_layers=3).save_pretrained(tmp_path / "other")
    with pytest.raises(BaseMismatchError, match=r"two different models[\s\S]*got: llava, 3 layers"):
        mmedit.diff(base, tmp_path / "other")
    with pytest.raises(ModelError, match="no such model"):
        mmedit.diff(base, tmp_path / "none")
    monkeypatch.setattr(diff_module, "MAX_FILE", 100)
    with pytest.raises(PatchError, match="not a fine-tune"):
        mmedit.diff(base, edited)


def test_a_diff_can_be_put_on_the_live_model(vlm: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    site, units = mmedit.Site(3), torch.tensor([2, 30])
    rows = vlm.architecture.w_out(site).rows(units)
    patch = mmedit.Patch({site: (units, torch.ones(2, 128))}, {site: rows}, Base.of(vlm))
    mmedit.bake("iconworld-llava", [patch], tmp_path / "edited")
    found = mmedit.diff("iconworld-llava", tmp_path / "edited")
    with found.applied(vlm):
        live = vlm.architecture.w_out(site).rows(units)
    assert torch.equal(live, (rows + 1).half().float())

"""Baking: bake∘load = load∘apply bit for bit, whatever is not edited stays as it is, and the folder appears whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

import mmedit
from mmedit.errors import BaseMismatchError, MmeditError, ModelError, OutputError, PatchError, RequestError
from mmedit.models.architecture import architecture_of
from mmedit.models.checkpoint_files import CHECKPOINTS
from mmedit.patches import bake as bake_module
from mmedit.patches import checkpoint as checkpoint_module
from mmedit.patches import placing
from mmedit.patches.base import Base, matrix_digest
from mmedit.patches.new_folder import new_folder

UNITS = torch.tensor([0, 1, 5, 1023, 1024, 2047, 2048, 2499])  # on both sides of every block's edge
SITES = (mmedit.Site(0), mmedit.Site(2))


def wide_llava(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Llava:
    """A small LLaVA whose W_outs are wider than two blocks of units."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8, projection_dim=16
        ),
        text_config=LlamaConfig(
            vocab_size=64, hidden_size=24, intermediate_size=2500, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False
        ),
        image_token_index=4, vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    return Llava(config).to(dtype).eval()


def sparse_patch(model: Any, seed: int = 0, units: torch.Tensor = UNITS) -> mmedit.Patch:
    """Random rows on two layers."""
    generator, w_outs = torch.Generator().manual_seed(seed), architecture_of(model).w_outs
    sites = [site for site in SITES if site in w_outs]
    deltas = {s: (units.clone(), torch.randn(len(units), w_outs[s].d_model, generator=generator)) for s in sites}
    base = {s: w_outs[s].rows(units) for s in sites}
    return mmedit.Patch(deltas, base, Base.of(model), "test", edits=({"source": f"s{seed}", "target": f"t{seed}"},))


def low_rank_patch(model: Any, seed: int = 0) -> mmedit.Patch:
    """The whole W_out of layer 0 by rank 3."""
    torch.manual_seed(seed)
    site, w_out = mmedit.Site(0), architecture_of(model).w_out(mmedit.Site(0))
    factors = torch.randn(w_out.d_ffn, 3), torch.randn(3, w_out.d_model)
    digests = {site: matrix_digest(w_out.matrix)}
    return mmedit.Patch({}, {}, Base.of(model), "test", low_rank={site: factors}, base_digests=digests)


def save_single(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


def save_sharded(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def save_with_names_of_today(model: Any, folder: Path) -> None:
    """As `state_dict` names the tensors, and as some newer checkpoints do; save_pretrained writes the older names."""
    model.save_pretrained(folder)
    old = load_file(folder / "model.safetensors")
    new = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert not set(old) & set(new), "the two generations of names differ"
    save_file(new, folder / "model.safetensors", {"format": "pt"})


def save_bin(model: Any, folder: Path) -> None:
    save_single(model, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def save_sharded_bin(model: Any, folder: Path) -> None:
    save_sharded(model, folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for shard in folder.glob("model-*.safetensors"):
        torch.save(load_file(shard), folder / f"pytorch_{shard.stem}.bin")
        shard.unlink()
    names = {n: f"pytorch_{f.removesuffix('.safetensors')}.bin" for n, f in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({**index, "weight_map": names}))
    (folder / "model.safetensors.index.json").unlink()


LAYOUTS = [save_single, save_sharded, save_with_names_of_today, save_bin, save_sharded_bin]


@pytest.fixture
def model() -> Llava:
    return wide_llava()


@pytest.fixture
def source(tmp_path: Path, model: Llava) -> Path:
    """A sharded checkpoint with the files of a processor beside it."""
    save_sharded(model, tmp_path / "source")
    (tmp_path / "source" / "tokenizer_config.json").write_text('{"any": "bytes"}')
    (tmp_path / "source" / "qformer_tokenizer").mkdir()
    (tmp_path / "source" / "qformer_tokenizer" / "vocab.txt").write_text("a b c")
    return tmp_path / "source"


def loaded(folder: Path, dtype: torch.dtype | str = "auto") -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit."""
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(
        t.dtype == theirs[n].dtype and torch.equal(t.contiguous().view(torch.uint8), theirs[n].view(torch.uint8))
        for n, t in ours.items()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("save", LAYOUTS)
def test_bake_then_load_is_load_then_apply(
    tmp_path: Path, save: Callable[[Any, Path], None], dtype: torch.dtype
) -> None:
    save(wide_llava(dtype), tmp_path / "source")
    reference = loaded(tmp_path / "source")
    patches = [sparse_patch(reference, 1), sparse_patch(reference, 2, UNITS[2:5]), low_rank_patch(reference)]
    mmedit.bake(tmp_path / "source", patches[::-1], tmp_path / "baked", scales=[0.5, -2.0, 1.0])
    before = loaded(tmp_path / "source")
    for patch, scale in zip(patches, [1.0, -2.0, 0.5], strict=True):
        patch.apply(reference, scale=scale)
    baked = loaded(tmp_path / "baked")
    assert same(baked, reference) and not same(baked, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baked", "source"]


def test_only_the_edited_rows_change_on_disk(source: Path, model: Llava, tmp_path: Path) -> None:
    before = files(source)
    baked = mmedit.bake(source, [sparse_patch(model)], tmp_path / "baked")
    after = files(tmp_path / "baked")
    assert files(source) == before and after.keys() == before.keys()
    index = json.loads(before["model.safetensors.index.json"])["weight_map"]
    assert baked.rows == {f"language_model.model.layers.{i}.mlp.down_proj.weight": len(UNITS) for i in (0, 2)}
    assert {name for name in after if after[name] != before[name]} == {index[name] for name in baked.rows}
    for name in baked.rows:
        old, new = (load_file(folder / index[name])[name] for folder in (source, tmp_path / "baked"))
        assert (old != new).any(0).nonzero().flatten().tolist() == UNITS.tolist()


def test_baked_rows_are_the_rounded_sum(tmp_path: Path) -> None:
    """Against the definition, not against `apply`, with which baking shares its code."""
    model = wide_llava(torch.float32)
    model.save_pretrained(tmp_path / "source")
    sparse, other, low_rank = sparse_patch(model, 1), sparse_patch(model, 2, UNITS[2:5]), low_rank_patch(model)
    mmedit.bake(tmp_path / "source", [sparse, other], tmp_path / "sparse", scales=[0.5, -2.0])
    mmedit.bake(tmp_path / "source", [low_rank], tmp_path / "dense", scales=[0.25])
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    base, rows, dense = (load_file(tmp_path / f / "model.safetensors")[name].T for f in ("source", "sparse", "dense"))
    delta = torch.zeros_like(base)
    for patch, scale in sorted([(sparse, 0.5), (other, -2.0)], key=lambda pair: pair[0].digest):
        delta[patch.units(SITES[0])] += scale * patch.rows(SITES[0])
    assert torch.equal(rows, base + delta)
    left, right = low_rank.low_rank[SITES[0]]
    assert torch.allclose(dense, base + 0.25 * (left @ right), rtol=0, atol=1e-6)


@pytest.mark.parametrize("save", [save_bin, save_sharded_bin])
def test_bin_weights_become_safetensors_of_the_same_numbers(tmp_path: Path, save: Callable[[Any, Path], None]) -> None:
    save(wide_llava(), tmp_path / "source")
    reference = loaded(tmp_path / "source")
    mmedit.bake(tmp_path / "source", [sparse_patch(reference).scaled(0.0)], tmp_path / "baked")
    names = {path.name for path in (tmp_path / "baked").iterdir()}
    assert not any("pytorch" in name or name.endswith(".bin") for name in names) and "config.json" in names
    assert same(loaded(tmp_path / "baked"), reference)


def test_the_shipped_checkpoint_bakes_and_captions_like_the_live_patch(
    vlm: mmedit.VisionLanguageModel, cat_file: Path, request_of_cat: mmedit.EditRequest, tmp_path: Path
) -> None:
    """Its file holds float16 and it computes in float32, so the baked rows are the live ones rounded to float16."""
    patch = mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat)
    baked = mmedit.load(mmedit.bake("iconworld-llava", [patch], tmp_path / "baked").folder)
    with patch.applied(vlm):
        assert baked.caption(cat_file) == vlm.caption(cat_file) != []
        for site, (units, _) in patch.deltas.items():
            live, ours = (m.architecture.w_out(site).matrix for m in (vlm, baked))
            assert torch.equal(ours[units], live[units].half().float())


def family(name: str) -> Any:
    """A tiny model of another family, with random weights."""
    from transformers import models as m

    text = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    eye = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    torch.manual_seed(0)
    if name == "qwen2_vl":
        tower = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 8}
        return m.qwen2_vl.Qwen2VLForConditionalGeneration(
            m.qwen2_vl.Qwen2VLConfig(
                text_config={**text, "rope_parameters": rope}, vision_config=tower, image_token_id=5, video_token_id=6, vision_start_token_id=7, vision_end_token_id=8
            )
        )  # fmt: skip
    if name == "paligemma":
        return m.paligemma.PaliGemmaForConditionalGeneration(
            m.paligemma.PaliGemmaConfig(text_config={"model_type": "gemma", **text, "head_dim": 8}, vision_config={"model_type": "siglip_vision_model", **eye}, image_token_index=5, projection_dim=16)
        )  # fmt: skip
    if name == "blip-2":
        decoder = {"model_type": "opt", "vocab_size": 64, "hidden_size": 16, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "word_embed_proj_dim": 16}  # fmt: skip
        bridge = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "encoder_hidden_size": 16, "vocab_size": 64}  # fmt: skip
        return m.blip_2.Blip2ForConditionalGeneration(
            m.blip_2.Blip2Config(
                vision_config=eye, qformer_config=bridge, text_config=decoder, num_query_tokens=2, image_token_index=5
            )
        )
    return m.idefics3.Idefics3ForConditionalGeneration(
        m.idefics3.Idefics3Config(
            text_config={"model_type": "llama", **text}, vision_config=eye, image_token_id=5, scale_factor=1
        )
    )


@pytest.mark.parametrize("name", ["qwen2_vl", "paligemma", "blip-2", "idefics3"])
def test_every_family_is_found_on_disk_by_transformers_own_rules(tmp_path: Path, name: str) -> None:
    family(name).to(torch.bfloat16).save_pretrained(tmp_path / "source")
    reference = loaded(tmp_path / "source")
    patch = sparse_patch(reference, units=torch.tensor([0, 7, 47]))
    mmedit.bake(tmp_path / "source", [patch], tmp_path / "baked")
    patch.apply(reference)
    assert same(loaded(tmp_path / "baked"), reference)


def test_a_name_that_is_right_already_stays_as_in_loading(tmp_path: Path, model: Llava, monkeypatch: Any) -> None:
    """Some families' rules for older names would spoil those of today; transformers then leaves them."""
    from transformers import conversion_mapping as rules
    from transformers.core_model_loading import WeightRenaming

    save_with_names_of_today(model, tmp_path / "source")
    known = rules.get_model_conversion_mapping
    spoiling = [WeightRenaming(r"^model\.language_model", "model.elsewhere")]
    monkeypatch.setattr(rules, "get_model_conversion_mapping", lambda model: [*known(model), *spoiling])
    mmedit.bake(tmp_path / "source", [sparse_patch(model)], tmp_path / "baked")
    sparse_patch(model).apply(model)
    assert same(loaded(tmp_path / "baked"), model)


@pytest.mark.parametrize("link", ["copy", "hard"])
def test_links_share_only_what_does_not_change(source: Path, model: Llava, tmp_path: Path, link: Any) -> None:
    before = files(source)
    mmedit.bake(source, [sparse_patch(model)], tmp_path / "baked", link=link)
    after = files(tmp_path / "baked")
    shared = {name for name in after if (source / name).samefile(tmp_path / "baked" / name)}
    unchanged = {name for name in after if after[name] == before[name] and name.startswith("model-")}
    assert shared == (unchanged if link == "hard" else set()) and len(unchanged) > 1
    assert files(source) == before != after


def test_reflinks_are_made_or_refused(source: Path, model: Llava, tmp_path: Path, monkeypatch: Any) -> None:
    """ext4 and tmpfs have none; what the system call does on file systems that do is stood for by a copy."""
    patch = sparse_patch(model)
    try:
        mmedit.bake(source, [patch], tmp_path / "first", link="reflink")
    except OutputError as error:
        assert "no reflink link can be made here" in str(error) and "link='copy'" in str(error)
        assert not (tmp_path / "first").exists()
    calls = []

    def clone(target: int, request: int, read: int) -> None:
        calls.append(request)
        os.write(target, os.pread(read, os.fstat(read).st_size, 0))

    mmedit.bake(source, [patch], tmp_path / "copied")
    monkeypatch.setattr(placing.fcntl, "ioctl", clone)
    mmedit.bake(source, [patch], tmp_path / "shared", link="reflink")
    mmedit.bake(source, [patch], tmp_path / "as cp does", link="copy")
    assert files(tmp_path / "shared") == files(tmp_path / "as cp does") == files(tmp_path / "copied")
    assert set(calls) == {0x40049409} and len(calls) == 2 * len(files(source))


def test_a_patch_for_another_model_is_refused_before_anything_is_written(
    source: Path, model: Llava, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(bake_module, "new_folder", None)  # would fail if it were reached
    other = wide_llava(seed=1)
    for patch, words in ((sparse_patch(other), r"L0\.U\d+[\s\S]*off by up to"), (low_rank_patch(other), r"L0\n[\s\S]*another digest")):  # fmt: skip
        with pytest.raises(BaseMismatchError, match=words):
            mmedit.bake(source, [patch], tmp_path / "baked")
    with pytest.raises(BaseMismatchError, match="3 layers, d_model 24"):
        mmedit.bake(source, [sparse_patch(family("qwen2_vl"), units=UNITS[:2])], tmp_path / "baked")
    beyond = dataclasses.replace(sparse_patch(model).base, d_ffn=9999)
    with pytest.raises(RequestError, match="no such unit"):
        mmedit.bake(source, [dataclasses.replace(sparse_patch(model), base=beyond, deltas={SITES[0]: (UNITS + 2000, torch.ones(8, 24))}, base_rows={SITES[0]: torch.zeros(8, 24)})], tmp_path / "baked")  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_cannot_be_meant_is_refused(source: Path, model: Llava, tmp_path: Path) -> None:
    patch, out = sparse_patch(model), tmp_path / "baked"
    cases: list[tuple[type[MmeditError], str, tuple[Any, ...], dict[str, Any]]] = [
        (PatchError, "no patches", (source, [], out), {}),
        (PatchError, "same patch twice", (source, [patch, patch], out), {}),
        (RequestError, "one finite scale", (source, [patch], out), {"scales": [1.0, 2.0]}),
        (RequestError, "one finite scale", (source, [patch], out), {"scales": [float("nan")]}),
        (OutputError, "no such kind of link", (source, [patch], out), {"link": "soft"}),
        (OutputError, "exists already", (source, [patch], source), {}),
        (OutputError, "exists already", (source, [patch], source / "config.json"), {}),
        (OutputError, "inside the checkpoint", (source, [patch], source / "baked"), {}),
        (OutputError, "cannot write this folder", (source, [patch], tmp_path / "none" / "baked"), {}),
        (PatchError, "too large for the file's type", (source, [patch], out), {"scales": [3e38]}),
        (ModelError, "not in the local cache", ("no-such/model", [patch], out), {}),
    ]
    for kind, words, arguments, options in cases:
        with pytest.raises(kind, match=words):
            mmedit.bake(*arguments, **options)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source"], words
    out.mkdir()
    assert mmedit.bake(source, [patch], out).rows, "an empty folder is free"


def damage(source: Path, kind: str) -> None:
    """Make a checkpoint wrong or unsafe."""
    index, shards = source / "model.safetensors.index.json", sorted(source.glob("model-*.safetensors"))
    told = json.loads(index.read_text())
    if kind == "missing shard":
        shards[1].unlink()
    elif kind == "cut shard":
        shards[1].write_bytes(shards[1].read_bytes()[:-10])
    elif kind == "huge header":
        shards[1].write_bytes(b"\xff" * 8 + shards[1].read_bytes()[8:])
    elif kind in EVIL:
        told["weight_map"]["language_model.lm_head.weight"] = EVIL[kind]
        index.write_text(json.dumps(told))
    elif kind == "index not JSON":
        index.write_text("{")
    elif kind == "index a list":
        index.write_text("[1]")
    elif kind == "no weights":
        index.unlink()
    elif kind == "evil link":
        (source / "README.md").symlink_to("/etc/hostname")
    elif kind == "linked shard":
        shards[1].rename(source.parent / "elsewhere.safetensors")
        shards[1].symlink_to("../elsewhere.safetensors")
    elif kind == "link to nowhere":
        (source / "README.md").symlink_to("nowhere")
    elif kind == "linked folder":
        (source / "docs").symlink_to("/etc")
    elif kind == "pipe":
        os.mkfifo(source / "pipe")
    elif kind == "no config":
        (source / "config.json").unlink()
    elif kind == "linked config":
        (source / "config.json").rename(source.parent / "config.json")
        (source / "config.json").symlink_to("../config.json")
    elif kind == "other kind":
        (source / "config.json").write_text('{"model_type": "llama"}')


EVIL = {"index leads up": "../secret.safetensors", "index absolute": "/etc/secret.safetensors", "index not a name": 3}
WRONG = {
    "missing shard": "a shard is missing", "cut shard": "cannot read this weight file", "huge header": "cannot read this weight file",
    **{kind: "a damaged checkpoint[\\s\\S]*index.json" for kind in (*EVIL, "index not JSON", "index a list")}, "no weights": "without weights",
    "evil link": "leaves the checkpoint's folder", "linked shard": "leaves the checkpoint's folder", "link to nowhere": "cannot read",
    "linked folder": "leaves the checkpoint's folder", "pipe": "files and folders", "no config": "no config.json",
    "linked config": "leaves the checkpoint's folder", "other kind": "not a vision-language model",
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_damaged_or_unsafe_checkpoint_is_refused(source: Path, model: Llava, tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    damage(source, kind)
    with pytest.raises(ModelError, match=WRONG[kind]):
        mmedit.bake(source, [sparse_patch(model)], tmp_path / "baked")
    assert not (tmp_path / "baked").exists() and not list(tmp_path.glob(".*"))


def test_a_shipped_checkpoint_may_be_links_as_in_a_strict_editable_install(
    vlm: mmedit.VisionLanguageModel, tmp_path: Path, monkeypatch: Any
) -> None:
    ours, stranger = tmp_path / "package" / "iconworld-llava", tmp_path / "stranger" / "iconworld-llava"
    for folder in (ours, stranger):
        folder.mkdir(parents=True)
        for path in (CHECKPOINTS / "iconworld-llava").iterdir():
            (folder / path.name).symlink_to(path)
    patch, shipped = sparse_patch(vlm, units=UNITS[:3]), files(CHECKPOINTS / "iconworld-llava")
    mmedit.bake("iconworld-llava", [patch], tmp_path / "reference")
    monkeypatch.setattr("mmedit.models.loading.CHECKPOINTS", tmp_path / "package")
    monkeypatch.setattr("mmedit.models.checkpoint_files.CHECKPOINTS", tmp_path / "package")
    mmedit.bake("iconworld-llava", [patch], tmp_path / "baked")
    assert files(tmp_path / "baked") == files(tmp_path / "reference") != shipped == files(ours)
    assert not any(path.is_symlink() for path in (tmp_path / "baked").iterdir())
    with pytest.raises(ModelError, match="leaves the checkpoint's folder"):
        mmedit.bake(stranger, [patch], tmp_path / "again")
    (ours / "pipe").symlink_to(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="files and folders"):
        mmedit.bake("iconworld-llava", [patch], tmp_path / "again")


class Evil:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_nothing_is_unpickled(tmp_path: Path, model: Llava) -> None:
    save_bin(model, tmp_path / "source")
    torch.save({"weight": Evil(tmp_path / "was here")}, tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot read this weight file"):
        mmedit.bake(tmp_path / "source", [sparse_patch(model)], tmp_path / "baked")
    assert not (tmp_path / "was here").exists()
    torch.save({"weight": [1, 2]}, tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="damaged checkpoint"):
        mmedit.bake(tmp_path / "source", [sparse_patch(model)], tmp_path / "baked")


def test_unedited_weights_in_other_formats_are_left_out(source: Path, model: Llava, tmp_path: Path) -> None:
    (source / "original").mkdir()
    for name in ("pytorch_model.bin", "original/consolidated.00.pth", "model.gguf"):
        (source / name).write_bytes(b"stale")
    (source / ".git").mkdir()
    (source / ".git" / "HEAD").write_text("ref")
    baked = mmedit.bake(source, [sparse_patch(model)], tmp_path / "baked")
    assert sorted(baked.left_out) == ["model.gguf", "original/consolidated.00.pth", "pytorch_model.bin"]
    assert set(files(source)) - set(files(tmp_path / "baked")) == {*baked.left_out, ".git/HEAD"}


@pytest.mark.parametrize("by", ["path", "Hub id"])
def test_a_snapshot_of_the_hugging_face_cache_is_read(
    source: Path, model: Llava, tmp_path: Path, by: str, monkeypatch: Any
) -> None:
    """Its files are links to blobs outside the snapshot, but inside the repository's folder; no others are followed."""
    repository = tmp_path / "hub" / "models--someone--llava"
    snapshot, blobs = repository / "snapshots" / "abc123", repository / "blobs"
    blobs.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        blob, link = blobs / path.name, snapshot / path.relative_to(source)
        shutil.copy(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    name = snapshot if by == "path" else "someone/llava"
    mmedit.bake(name, [sparse_patch(model)], tmp_path / "baked")
    mmedit.bake(source, [sparse_patch(model)], tmp_path / "reference")
    assert files(tmp_path / "baked") == files(tmp_path / "reference")
    assert not any(path.is_symlink() for path in (tmp_path / "baked").rglob("*"))
    (snapshot / "README.md").symlink_to(tmp_path / "source" / "config.json")
    with pytest.raises(ModelError, match="leaves the checkpoint's folder"):
        mmedit.bake(name, [sparse_patch(model)], tmp_path / "again")


@pytest.mark.parametrize("kind", ["quantised", "shape", "absent", "converted"])
def test_a_w_out_that_is_not_one_plain_tensor_is_refused(
    model: Llava, tmp_path: Path, kind: str, monkeypatch: Any
) -> None:
    save_single(model, tmp_path / "source")
    file, name = tmp_path / "source" / "model.safetensors", "language_model.model.layers.2.mlp.down_proj.weight"
    tensors = load_file(file)
    if kind == "quantised":
        tensors[name] = tensors[name].to(torch.int8)
    elif kind == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif kind == "absent":
        del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    if kind == "converted":  # as fused experts are: a rule of loading that does more than rename
        from transformers import conversion_mapping as rules
        from transformers.core_model_loading import Transpose, WeightConverter

        ours = [WeightConverter(r"mlp\.down_proj\.weight", r"mlp\.down_proj\.weight", [Transpose(0, 1)])]
        known = rules.get_model_conversion_mapping
        monkeypatch.setattr(rules, "get_model_conversion_mapping", lambda model: [*known(model), *ours])
    words = {"quantised": "is quantised[\\s\\S]*int8", "shape": "another shape", "absent": "nothing of that name", "converted": "put together in loading"}  # fmt: skip
    with pytest.raises(ModelError, match=words[kind]):
        mmedit.bake(tmp_path / "source", [sparse_patch(model)], tmp_path / "baked")


def test_tied_w_outs(tmp_path: Path, model: Llava, monkeypatch: Any) -> None:
    """Layers that share one W_out, of which the file holds one copy: edits of one layer bake, edits of both are refused."""
    save_single(model, tmp_path / "source")
    file, names = tmp_path / "source" / "model.safetensors", [f"language_model.model.layers.{i}.mlp.down_proj.weight" for i in (0, 2)]  # fmt: skip
    save_file({n: t for n, t in load_file(file).items() if n != names[1]}, file, {"format": "pt"})
    skeleton = checkpoint_module._skeleton

    def tie(model: Any) -> Any:
        layers = model.model.language_model.layers
        layers[2].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
        return model

    monkeypatch.setattr(checkpoint_module, "_skeleton", lambda folder: tie(skeleton(folder)))
    patch = sparse_patch(tie(model))
    for both in ([patch], [only(patch, SITES[0]), only(patch, SITES[1])]):
        with pytest.raises(ModelError, match=rf"share one W_out\n  where: {names[0]}\n[\s\S]*save_pretrained"):
            mmedit.bake(tmp_path / "source", both, tmp_path / "baked")
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
    for site in SITES:
        part = only(patch, site)
        assert mmedit.bake(tmp_path / "source", [part], tmp_path / str(site)).rows == {names[0]: len(UNITS)}
        with part.applied(model):
            wanted = architecture_of(model).w_out(site).weight
            assert torch.equal(load_file(tmp_path / str(site) / "model.safetensors")[names[0]], wanted)


def only(patch: mmedit.Patch, site: mmedit.Site) -> mmedit.Patch:
    """One site of a row-sparse patch."""
    return dataclasses.replace(patch, deltas={site: patch.deltas[site]}, base_rows={site: patch.base_rows[site]})


def test_a_full_disk_is_told_and_leaves_nothing(source: Path, model: Llava, tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk that becomes full in the middle of a shard."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write this folder[\s\S]*free some space"):
            mmedit.bake(source, [sparse_patch(model)], tmp_path / "baked")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_does_not_read_back_is_an_error(source: Path, model: Llava, tmp_path: Path, monkeypatch: Any) -> None:
    write_to = bake_module.StoredWOut.write_to

    def forgetful(self: Any, target: Any, units: torch.Tensor, rows: torch.Tensor) -> None:
        write_to(self, target, units, torch.cat([rows[:-1], rows[-1:] + 1]))

    monkeypatch.setattr(bake_module.StoredWOut, "write_to", forgetful)
    with pytest.raises(OutputError, match="does not read back"):
        mmedit.bake(source, [sparse_patch(model)], tmp_path / "baked")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_new_folder_is_removed_on_any_exit(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "new") as part:
        (part / "a").write_text("a")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time_writes_a_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new"):
        with pytest.raises(OutputError, match="another process"), new_folder(tmp_path / "new"):
            pass
        with new_folder(tmp_path / "other") as part:
            (part / "a").write_text("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "other"]


def test_only_remains_are_cleaned_up(tmp_path: Path) -> None:
    for name in (".new.part-77-abcdefgh", ".new.part-x", ".newer.part-77-abcdefgh", ".new.lock.d"):
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "new"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".new.lock.d", ".new.part-x", ".newer.part-77-abcdefgh", "new"]  # fmt: skip


SERVER = """
import os, signal, sys, threading, time, torch, tqdm, mmedit
torch.set_num_threads(1)
tqdm.tqdm.monitor_interval = 0  # no thread beside ours when we fork
tqdm.tqdm.set_lock(threading.RLock())  # its own is shared by forked processes, and one that is killed keeps it for ever
source, target, patch = sys.argv[1], sys.argv[2], mmedit.Patch.load(sys.argv[3])

def kill_at(number):
    "Kill this process at the n-th time that it is about to touch a file of the new folder or beside it."
    def hook(event, arguments):
        nonlocal number
        if any(os.path.basename(target) in str(a) for a in arguments):
            number -= 1
            if not number:
                os.kill(os.getpid(), 9)
    sys.addaudithook(hook)

mmedit.bake(source, [patch], target + "-reference")
start = time.perf_counter()
mmedit.bake(source, [patch], target + "-timed")
print(time.perf_counter() - start, flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        signal.alarm(60)  # a baker that hangs is a failure, not a wait
        if int(line):
            kill_at(int(line))
        code = 1
        try:
            mmedit.bake(source, [patch], target)
            code = 0
        finally:
            os._exit(code)
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Bakers:
    """Processes that bake one after the other and may be killed, forked from one that has imported everything."""

    def __init__(self, source: Path, target: Path, patch: mmedit.Patch) -> None:
        patch.save(target.parent / "p.safetensors")
        arguments = [sys.executable, "-P", "-c", SERVER, str(source), str(target), str(target.parent / "p.safetensors")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        self._server = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)  # fmt: skip
        self.seconds = float(self._answer())

    def _answer(self) -> str:
        assert self._server.stdout
        return self._server.stdout.readline()

    def _tell(self, line: object) -> None:
        assert self._server.stdin
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()

    def run(self, kill_at: int = 0, kill_after: float | None = None) -> int:
        """One bake, killed at a step or after some seconds, or not; its exit code."""
        self._tell(kill_at)
        child = int(self._answer())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)  # a child that has ended is kept until the next line, so this is nobody else
        self._tell("")
        return int(self._answer())

    def close(self) -> None:
        for pipe in (self._server.stdin, self._server.stdout):
            assert pipe
            pipe.close()
        self._server.wait()


def test_a_bake_killed_at_any_moment_leaves_nothing_or_a_whole_folder(
    source: Path, model: Llava, tmp_path: Path
) -> None:
    """Fifty kills at random moments, and one at each step that touches the new folder."""
    target = tmp_path / "out" / "baked"
    target.parent.mkdir()
    bakers, rng, counts = Bakers(source, target, sparse_patch(model)), random.Random(0), {True: 0, False: 0}
    whole = files(target.parent / "baked-reference")

    def check(code: int) -> bool:
        there = target.exists()
        assert not there or files(target) == whole
        assert there or code, "a bake that ended well wrote a folder"
        counts[there] += 1
        if there:
            shutil.rmtree(target)
        return there

    try:
        for _ in range(50):
            check(bakers.run(kill_after=rng.uniform(0, 1.1 * bakers.seconds)))
        for step in range(1, 1000):
            code = bakers.run(kill_at=step)
            if check(code) and code == 0:
                break
        assert step > 20 and counts[False] > 40
        assert bakers.run(kill_at=step // 2) == -signal.SIGKILL and list(target.parent.glob(".baked*"))
        assert bakers.run() == 0
    finally:
        bakers.close()
    left = sorted(path.name for path in target.parent.iterdir())
    assert left == ["baked", "baked-reference", "baked-timed", "p.safetensors"], "the next run cleans up"
    assert same(loaded(target), loaded(target.parent / "baked-reference"))

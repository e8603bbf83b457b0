"""Patches: save∘load = id, apply∘revert = id bit for bit, and no other model is touched."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mmedit
from mmedit.errors import BaseMismatchError, MmeditError, OutputError, PatchError
from mmedit.patches.base import Base, matrix_digest
from mmedit.patches.live import stack_of
from mmedit.testbed.checkpoint import build_llava

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_patch(vlm: Any, seed: int, n_units: int = 4, layers: tuple[int, ...] = (0, 3, 5)) -> mmedit.Patch:
    """A patch of random rows, made on a model's own."""
    generator = torch.Generator().manual_seed(seed)
    deltas, base = {}, {}
    for layer in layers:
        units = torch.randperm(24, generator=generator)[:n_units].sort().values  # few units, so that patches overlap
        deltas[mmedit.Site(layer)] = units, torch.randn(n_units, 128, generator=generator)
        base[mmedit.Site(layer)] = mmedit.models.architecture.architecture_of(vlm).w_out(mmedit.Site(layer)).rows(units)
    edit = {"source": f"s{seed}", "target": f"t{seed}"}
    return mmedit.Patch(deltas, base, Base.of(vlm), "test", {"seed": seed}, (edit,))


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal bit for bit, −0.0 and 0.0 told apart."""
    kinds = {4: torch.int32, 2: torch.int16, 8: torch.int64}
    return all(torch.equal(a[k].view(kinds[a[k].itemsize]), b[k].view(kinds[b[k].itemsize])) for k in a)


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_then_revert_is_nothing_bit_for_bit(untrained: mmedit.VisionLanguageModel, dtype: torch.dtype) -> None:
    untrained.model.to(dtype)
    before = bits(untrained.model)
    patch = random_patch(untrained, 1)
    patch.apply(untrained)
    changed = {name for name, tensor in bits(untrained.model).items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.language_model.layers.{i}.mlp.down_proj.weight" for i in (0, 3, 5)}
    patch.revert(untrained)
    assert same(before, bits(untrained.model))


@pytest.mark.parametrize("dtype", DTYPES)
def test_live_rows_are_the_rounded_sum_and_no_other_row_moves(
    untrained: mmedit.VisionLanguageModel, dtype: torch.dtype
) -> None:
    untrained.model.to(dtype)
    patch = random_patch(untrained, 2)
    matrices = {site: untrained.architecture.w_out(site).matrix.clone() for site in patch.deltas}
    with patch.applied(untrained, scale=0.5):
        for site, (units, rows) in patch.deltas.items():
            expected = matrices[site].clone()
            expected[units] = (expected[units].float() + 0.5 * rows).to(dtype)
            assert torch.equal(untrained.architecture.w_out(site).matrix, expected)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(4)), leave=st.permutations(range(4)), dtype=st.sampled_from(DTYPES))
def test_the_order_of_a_stack_does_not_matter(
    processor: Any, order: list[int], leave: list[int], dtype: torch.dtype
) -> None:
    model = build_llava(processor).to(dtype)
    before, stack = bits(model), stack_of(model)
    patches = [random_patch(model, seed) for seed in range(4)]
    for i in range(4):
        stack.push(patches[i], str(i), scale=1 + i / 3)
    reference = bits(model)
    stack.clear()
    for i in order:
        stack.push(patches[i], str(i), scale=1 + i / 3)
    assert same(reference, bits(model))
    for i in leave[:2]:
        stack.pop(str(i))
    two = bits(model)
    stack.clear()
    for i in sorted(leave[2:]):
        stack.push(patches[i], str(i), scale=1 + i / 3)
    assert same(two, bits(model))
    stack.clear()
    assert same(before, bits(model))
    assert stack.names == () and not stack._base


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_applied_reverts_on_any_exit(untrained: mmedit.VisionLanguageModel, error: type[BaseException]) -> None:
    before, patch = bits(untrained.model), random_patch(untrained, 3)
    with pytest.raises(error), patch.applied(untrained):
        raise error
    assert same(before, bits(untrained.model))
    assert stack_of(untrained).names == ()


def test_an_error_in_the_middle_of_writing_leaves_the_model_as_it_was(
    untrained: mmedit.VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = random_patch(untrained, 4), random_patch(untrained, 5)
    first.apply(untrained)
    before = bits(untrained.model)
    w_out = untrained.architecture.w_out(mmedit.Site(3))
    write, calls = type(w_out).write, []

    def fail_once(self: Any, units: torch.Tensor, rows: torch.Tensor) -> None:
        calls.append(self.site)
        if len(calls) == 2:
            raise RuntimeError("device lost")
        write(self, units, rows)

    monkeypatch.setattr(type(w_out), "write", fail_once)
    with pytest.raises(RuntimeError, match="device lost"):
        second.apply(untrained)
    assert same(before, bits(untrained.model))
    assert stack_of(untrained).names == ("s4→t4",)


def test_save_then_load_is_the_same_patch(untrained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    for seed, dtype in enumerate(DTYPES):
        patch = random_patch(mmedit.VisionLanguageModel(untrained.model.to(dtype), untrained.processor, "m"), seed)
        patch.save(tmp_path / "p.safetensors")
        again = mmedit.Patch.load(tmp_path / "p.safetensors")
        fields = ("base", "editor", "hparams", "edits", "evaluation", "created", "library_version", "digest")
        assert all(getattr(patch, name) == getattr(again, name) for name in fields)
        assert all(torch.equal(patch.base_rows[s], again.base_rows[s]) for s in patch.deltas)
        assert again.base_rows[mmedit.Site(0)].dtype == dtype
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_sites_may_share_a_tensor(untrained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    units, rows = torch.tensor([3, 9]), torch.randn(2, 128)
    base = {mmedit.Site(layer): untrained.architecture.w_out(mmedit.Site(layer)).rows(units) for layer in (1, 2)}
    patch = mmedit.Patch({site: (units, rows) for site in base}, base, Base.of(untrained))
    patch.save(tmp_path / "p.safetensors")
    assert mmedit.Patch.load(tmp_path / "p.safetensors").digest == patch.digest


def test_the_file_is_format_1(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, tmp_path: Path
) -> None:
    mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat).save(
        tmp_path / "p.safetensors"
    )
    with safe_open(tmp_path / "p.safetensors", "pt") as file:
        metadata = file.metadata()
        keys = set(file.keys())
    assert (metadata["format"], metadata["format_version"], metadata["editor"]) == ("mmedit-patch", "1", "MMNeurons")
    edit = json.loads(metadata["edits"])[0]
    assert (edit["source"], edit["target"], len(edit["neurons"]), len(edit["images"])) == ("cat", "dog", 5, 1)
    layers = {key.split(".")[1] for key in keys}
    assert keys == {f"layers.{layer}.w_out.{part}" for layer in layers for part in ("units", "delta", "base")}


def test_a_patch_is_refused_by_another_model(untrained: mmedit.VisionLanguageModel, processor: Any) -> None:
    patch = random_patch(untrained, 6)
    other = build_llava(processor, seed=1)
    before = bits(other)
    with pytest.raises(BaseMismatchError, match=r"L0\.U\d+[\s\S]*off by up to"):
        patch.apply(other)
    assert same(before, bits(other))
    one_row = build_llava(processor)
    unit = int(patch.deltas[mmedit.Site(5)][0][2])
    with torch.no_grad():
        one_row.model.language_model.layers[5].mlp.down_proj.weight[0, unit] += 1e-3
    with pytest.raises(BaseMismatchError, match=rf"L5\.U{unit}\b"):
        patch.apply(one_row)


@pytest.mark.parametrize("made_on", DTYPES)
@pytest.mark.parametrize("used_on", DTYPES)
def test_a_patch_fits_its_base_loaded_in_another_type(
    processor: Any, made_on: torch.dtype, used_on: torch.dtype
) -> None:
    if {made_on, used_on} == {torch.bfloat16, torch.float16}:
        pytest.skip("neither type holds the other's numbers")
    patch, model = random_patch(build_llava(processor).to(made_on), 7), build_llava(processor).to(used_on)
    before = bits(model)
    with patch.applied(model):
        assert not same(before, bits(model))
    assert same(before, bits(model))


def test_a_patch_is_live_once_unless_it_is_named(untrained: mmedit.VisionLanguageModel) -> None:
    patch = random_patch(untrained, 8)
    patch.apply(untrained)
    with pytest.raises(PatchError, match="live already"):
        patch.apply(untrained)
    patch.apply(untrained, name="again", scale=-1.0)
    with pytest.raises(PatchError, match="of this name"):
        patch.apply(untrained, name="again")
    stack_of(untrained).clear()
    with pytest.raises(PatchError, match="not live"):
        patch.revert(untrained)


def test_quantised_and_offloaded_weights_are_refused(untrained: mmedit.VisionLanguageModel) -> None:
    patch = random_patch(untrained, 9)
    down = untrained.model.model.language_model.layers[0].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.to("meta"))
    with pytest.raises(MmeditError, match=r"offloaded[\s\S]*to_lora"):
        patch.apply(untrained)


@pytest.mark.parametrize("place", ["missing/p.safetensors", "file.txt/p.safetensors"])
def test_saving_where_one_cannot_is_an_error(untrained: mmedit.VisionLanguageModel, tmp_path: Path, place: str) -> None:
    (tmp_path / "file.txt").write_text("here")
    with pytest.raises(OutputError, match="cannot write"):
        random_patch(untrained, 10).save(tmp_path / place)


def rewrite(path: Path, tensors: dict[str, Any] | None = None, **metadata: str) -> None:
    """Write a patch file again with some tensors or metadata replaced (None: left out)."""
    with safe_open(path, "pt") as file:
        texts = {**file.metadata(), **metadata}
    kept = {**load_file(path), **(tensors or {})}
    save_file({k: v for k, v in kept.items() if v is not None}, path, texts)


KEY = "layers.3.w_out"
WRONG = {
    "extra tensor": ({"evil": torch.zeros(1)}, {}, "does not belong"),
    "no units": ({f"{KEY}.units": None}, {}, "without all its tensors"),
    "float units": ({f"{KEY}.units": torch.zeros(4)}, {}, "wrong type"),
    "half delta": ({f"{KEY}.delta": torch.zeros(4, 128).half()}, {}, "wrong type"),
    "unsorted": ({f"{KEY}.units": torch.tensor([3, 2, 1, 0])}, {}, "sorted"),
    "twice": ({f"{KEY}.units": torch.tensor([1, 1, 2, 3])}, {}, "sorted"),
    "negative": ({f"{KEY}.units": torch.tensor([-1, 1, 2, 3])}, {}, "sorted"),
    "beyond": ({f"{KEY}.units": torch.tensor([1, 2, 3, 512])}, {}, "below 512"),
    "narrow": ({f"{KEY}.delta": torch.zeros(4, 64)}, {}, "wrong shape"),
    "short": ({f"{KEY}.units": torch.tensor([1, 2, 3])}, {}, "wrong shape"),
    "NaN": ({f"{KEY}.delta": torch.full((4, 128), float("nan"))}, {}, "finite"),
    "layer": ({f"layers.6.w_out.{p}": t for p, t in (("units", torch.tensor([1])), ("delta", torch.zeros(1, 128)), ("base", torch.zeros(1, 128)))}, {}, "layer below 6"),
    "format": ({}, {"format": "other"}, "not an mmedit patch"),
    "version": ({}, {"format_version": "2"}, "another format version"),
    "JSON": ({}, {"base": "{"}, "damaged metadata"),
    "base fields": ({}, {"base": "{}"}, "damaged metadata"),
    "base types": ({}, {"base": json.dumps({"model": "m", "revision": None, "model_type": "llava", "n_layers": "6", "d_model": 128, "d_ffn": 512, "config_digest": ""})}, "description of its base"),
    "edits": ({}, {"edits": "[3]"}, "damaged metadata"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_damaged_patch_is_refused_with_its_file(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, case: str
) -> None:
    tensors, metadata, words = WRONG[case]
    path = tmp_path / "p.safetensors"
    random_patch(untrained, 11).save(path)
    rewrite(path, tensors, **metadata)
    with pytest.raises(PatchError, match=words) as caught:
        mmedit.Patch.load(path)
    assert str(path) in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_give_a_patch_or_a_patch_error(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, data: Any
) -> None:
    path = tmp_path / "p.safetensors"
    random_patch(untrained, 12, n_units=2, layers=(1,)).save(path)
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "random"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif kind == "flip":
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    else:
        content = bytearray(data.draw(st.binary(max_size=200)))
    path.write_bytes(content)
    try:
        mmedit.Patch.load(path)
    except PatchError as error:
        assert str(path) in str(error)


def test_scaled_rows_are_multiplied(untrained: mmedit.VisionLanguageModel) -> None:
    patch = low_rank_patch(untrained, 13)
    scaled = patch.scaled(4.0)
    assert scaled.sites == patch.sites == (mmedit.Site(2), mmedit.Site(4))
    assert all(torch.equal(scaled.rows(site), 4 * patch.rows(site)) for site in patch.sites)  # a power of two: exactly
    parts = ({}, {"deltas": scaled.deltas}, {"low_rank": scaled.low_rank})
    assert len({dataclasses.replace(patch, **part).digest for part in parts}) == 3


def test_a_patch_is_called_by_what_it_does_and_is_itself_alone(untrained: mmedit.VisionLanguageModel) -> None:
    patch = random_patch(untrained, 14)
    assert patch.name == "s14→t14"
    assert dataclasses.replace(patch, edits=()).name == patch.digest[:12]
    assert patch == patch and patch != dataclasses.replace(patch) and len({patch, dataclasses.replace(patch)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        patch.editor = "another"  # type: ignore[misc]


def test_the_parts_of_a_patch_belong_together(untrained: mmedit.VisionLanguageModel) -> None:
    patch, (two, four) = low_rank_patch(untrained, 15), (mmedit.Site(2), mmedit.Site(4))
    with pytest.raises(PatchError, match="deltas none, base rows L4, low-rank L2, base digests L2"):
        dataclasses.replace(patch, deltas={})
    with pytest.raises(PatchError, match="low-rank L2, base digests none"):
        dataclasses.replace(patch, base_digests={})
    with pytest.raises(PatchError, match="either row-sparse or low-rank") as caught:
        both = {site: (*patch.deltas.values(),)[0] for site in (two, four)}
        rows = {site: patch.base_rows[four] for site in (two, four)}
        dataclasses.replace(patch, deltas=both, base_rows=rows)
    assert caught.value.got == "L2"
    left, right = patch.low_rank[two]
    for wrong in (
        (left[1:], right),
        (left, right[1:]),
        (left, right[:, 1:]),
        (left.double(), right),
        (left, right * torch.nan),
    ):
        with pytest.raises(PatchError, match=r"low-rank|finite"):
            dataclasses.replace(patch, low_rank={two: wrong})


def low_rank_patch(vlm: Any, seed: int) -> mmedit.Patch:
    """A patch that changes the whole W_out of layer 2 by rank 3, and a few rows of layer 4."""
    architecture = mmedit.models.architecture.architecture_of(vlm)
    sparse, site = random_patch(vlm, seed, layers=(4,)), mmedit.Site(2)
    factors = torch.randn(512, 3), torch.randn(3, 128)
    digest = matrix_digest(architecture.w_out(site).matrix)
    return dataclasses.replace(sparse, low_rank={site: factors}, base_digests={site: digest})


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_patches_obey_the_same_laws(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    untrained.model.to(dtype)
    before, site = bits(untrained.model), mmedit.Site(2)
    patch = low_rank_patch(untrained, 20)
    patch.save(tmp_path / "p.safetensors")
    again = mmedit.Patch.load(tmp_path / "p.safetensors")
    assert again.digest == patch.digest and again.sites == (site, mmedit.Site(4))
    matrix, (left, right) = untrained.architecture.w_out(site).matrix.clone(), patch.low_rank[site]
    other = random_patch(untrained, 21, layers=(2,))
    with again.applied(untrained), other.applied(untrained):
        stack_of(untrained).pop("s21→t21")
        expected = (matrix.float() + left @ right).to(dtype)
        assert torch.equal(untrained.architecture.w_out(site).matrix, expected)
    assert same(before, bits(untrained.model))


def test_a_low_rank_patch_is_refused_by_another_model(untrained: mmedit.VisionLanguageModel, processor: Any) -> None:
    with pytest.raises(BaseMismatchError, match=r"L2\n[\s\S]*another digest"):
        low_rank_patch(untrained, 22).apply(build_llava(processor, seed=1))

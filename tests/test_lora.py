"""PEFT adapters: merging one gives the bits of `apply`, reading one back gives the patch, and one that does nothing is an error."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    OPTConfig,
)

import mmedit
from mmedit.errors import BaseMismatchError, MmeditError, ModelError, OutputError, PatchError
from mmedit.models.architecture import architecture_of
from mmedit.patches import lora
from mmedit.patches.base import Base, matrix_digest

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MODULE = "model.language_model.layers.{}.mlp.down_proj"
IDS = torch.tensor([[1, 7, 99, 200, 31, 5]])


def patch_of(model: Any, n_units: int = 3, seed: int = 0, n_sites: int = 2) -> mmedit.Patch:
    """A patch of random rows in the last layers of any model."""
    architecture, generator = architecture_of(model), torch.Generator().manual_seed(seed)
    deltas, base = {}, {}
    for site in sorted(architecture.w_outs)[-n_sites:]:
        w_out = architecture.w_out(site)
        units = torch.randperm(w_out.d_ffn, generator=generator)[:n_units].sort().values
        deltas[site], base[site] = (units, torch.randn(n_units, w_out.d_model, generator=generator)), w_out.rows(units)
    return mmedit.Patch(deltas, base, Base.of(model), "test", {}, ({"source": "cat", "target": "dog"},))


def low_rank_patch(model: Any, rank: int = 3) -> mmedit.Patch:
    """A patch of the whole W_out of layer 1, and of rows of the last."""
    site, architecture = mmedit.Site(1), architecture_of(model)
    w_out = architecture.w_out(site)
    factors = torch.randn(w_out.d_ffn, rank), torch.randn(rank, w_out.d_model) / 10
    return dataclasses.replace(
        patch_of(model, n_sites=1), low_rank={site: factors}, base_digests={site: matrix_digest(w_out.matrix)}
    )  # fmt: skip


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_adapter_has_the_bits_of_apply(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = untrained.model.to(dtype)
    other, patch = copy.deepcopy(model), patch_of(model)
    done = patch.to_lora(tmp_path / "adapter", untrained)
    assert done.target_modules == (MODULE.format(4), MODULE.format(5)) and done.rank == 8
    adapted = PeftModel.from_pretrained(other, str(tmp_path / "adapter"))
    before, live = logits(model), logits(adapted)
    merged = adapted.merge_and_unload()
    with patch.applied(model):
        assert equal(bits(merged), bits(model))
        wanted = logits(model)
    moved, off = (wanted - before).abs().max(), (wanted - live).abs().max()
    assert moved > 0.1 and off < {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    assert done.moved > 0.1 and done.off < 0.2 * done.moved


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_low_rank_patch_is_merged_to_rounding(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = untrained.model.to(dtype)
    other, patch = copy.deepcopy(model), low_rank_patch(model)
    patch.to_lora(tmp_path / "adapter", model)
    merged = bits(PeftModel.from_pretrained(other, str(tmp_path / "adapter")).merge_and_unload())
    with patch.applied(model):
        for name, wanted in bits(model).items():
            slack = (
                4 * torch.finfo(dtype).eps * float(wanted.abs().max()) if name == f"{MODULE.format(1)}.weight" else 0.0
            )
            assert float((merged[name].float() - wanted.float()).abs().max()) <= slack


@pytest.mark.parametrize(("n_units", "rank"), [(1, 1), (2, 8), (8, 8), (9, 16), (33, 64), (257, 320), (512, 512)])
def test_the_files_are_what_peft_and_vllm_read(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, n_units: int, rank: int
) -> None:
    base = dataclasses.replace(patch_of(untrained).base, model="owner/name", revision="abc")
    patch = dataclasses.replace(patch_of(untrained, n_units), base=base)
    patch.to_lora(tmp_path / "adapter", untrained)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert set(tensors) == {f"base_model.model.{MODULE.format(i)}.lora_{f}.weight" for i in (4, 5) for f in "AB"}
    for site, (units, rows) in patch.deltas.items():
        a, b = (tensors[f"base_model.model.{MODULE.format(site.layer)}.lora_{factor}.weight"] for factor in "AB")
        assert a.shape == (rank, 512) and b.shape == (128, rank) and b.dtype == torch.float32
        assert torch.equal(a[:n_units].nonzero(), torch.stack([torch.arange(n_units), units], 1)) and set(
            a.unique().tolist()
        ) == {0.0, 1.0}
        assert torch.equal(b[:, :n_units].T, rows) and not a[n_units:].any() and not b[:, n_units:].any()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (rank, rank, {}, {})
    assert config["target_modules"] == [MODULE.format(4), MODULE.format(5)] and config["peft_type"] == "LORA"
    assert (config["base_model_name_or_path"], config["revision"], config["bias"]) == ("owner/name", "abc", "none")
    assert config["modules_to_save"] is None and not config["use_dora"] and not config["use_rslora"]
    assert config["auto_mapping"]["base_model_class"] == "LlavaForConditionalGeneration"
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert card.startswith("---\nbase_model: owner/name\nlibrary_name: peft\n") and "`cat` → `dog`" in card
    assert ((tmp_path / "adapter" / "adapter_model.safetensors").stat().st_mode & 0o777) == ((tmp_path / "adapter" / "README.md").stat().st_mode & 0o777)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [patch_of, low_rank_patch])
def test_to_lora_then_from_lora_is_the_same_patch(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, dtype: torch.dtype, make: Any
) -> None:
    untrained.model.to(dtype)
    patch = make(untrained)
    patch.deltas[mmedit.Site(5)][1][0, :7] = -0.0
    patch.to_lora(tmp_path / "adapter", untrained)
    patch.apply(untrained)  # the base rows are the unpatched ones all the same
    again = mmedit.Patch.from_lora(tmp_path / "adapter", untrained)
    assert (again.digest, again.name, again.base, again.edits) == (patch.digest, "cat→dog", patch.base, patch.edits)
    assert again.base_digests == patch.base_digests and again.editor == "LoRA"
    assert all(torch.equal(rows, again.base_rows[site]) for site, rows in patch.base_rows.items())


def state(model: Any) -> list[Any]:
    """All that an adapter could leave on a model, weights aside."""
    modules = [(name, id(module), type(module), module.training, sorted(vars(module)), [len(getattr(module, hooks)) for hooks in vars(module) if "hooks" in hooks]) for name, module in model.named_modules()]  # fmt: skip
    parameters = [(name, id(p), p.requires_grad, p.dtype, p.data_ptr(), p.grad) for name, p in model.named_parameters()]
    return [modules, parameters, model.config.to_dict(), torch.random.get_rng_state().tolist()]


def test_the_model_is_left_as_it_is(untrained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    model = untrained.model.train()
    model.model.language_model.layers[2].mlp.down_proj.weight.requires_grad_(False)
    handle = model.model.language_model.layers[5].mlp.down_proj.register_forward_pre_hook(lambda module, args: None)
    patch, other = patch_of(model), patch_of(model, seed=1)
    other.apply(model)
    patch.apply(model)  # a live patch can be exported, too
    before, weights = state(model), bits(model)
    patch.to_lora(tmp_path / "adapter", untrained)
    assert state(model) == before and equal(bits(model), weights)
    assert mmedit.Stack.of(model).names == ("cat→dog", "cat→dog (2)")
    handle.remove()
    mmedit.Stack.of(model).clear()
    merged = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "adapter")).merge_and_unload()
    with patch.applied(model):
        assert equal(bits(merged), bits(model))


def rewritten(folder: Path, change: Any) -> None:
    """Write an adapter's tensors again, changed."""
    tensors = load_file(folder / lora.WEIGHTS)
    save_file(change(tensors), folder / lora.WEIGHTS, {"format": "pt"})


def reconfigured(folder: Path, **values: Any) -> None:
    config = json.loads((folder / lora.CONFIG).read_text())
    (folder / lora.CONFIG).write_text(json.dumps({**config, **values}))


BROKEN = {
    "prefix of a text model": (lambda f: rewritten(f, lambda t: {k.replace("model.model.language_model", "model.model"): v for k, v in t.items()}), "silent no-op"),
    "no prefix": (lambda f: rewritten(f, lambda t: {k.removeprefix("base_model."): v for k, v in t.items()}), "silent no-op"),
    "no lora_B": (lambda f: rewritten(f, lambda t: {k: v for k, v in t.items() if "lora_A" in k}), "silent no-op"),
    "no lora_A": (lambda f: rewritten(f, lambda t: {k: v for k, v in t.items() if "lora_B" in k}), "off by up to"),
    "zeros": (lambda f: rewritten(f, lambda t: {k: torch.zeros_like(v) for k, v in t.items()}), "silent no-op"),
    "one layer": (lambda f: rewritten(f, lambda t: {k: v for k, v in t.items() if "layers.4." in k}), "L5 unchanged"),
    "another unit": (lambda f: rewritten(f, lambda t: {k: v.roll(1, 1).contiguous() if "lora_A" in k else v for k, v in t.items()}), "off by up to"),
    "rounded": (lambda f: rewritten(f, lambda t: {k: v.bfloat16().float() for k, v in t.items()}), "off by up to"),
    "last bit": (lambda f: rewritten(f, lambda t: {k: v * (1 + 2**-22) if "lora_B" in k else v for k, v in t.items()}), "off by up to"),
    "scaled": (lambda f: reconfigured(f, lora_alpha=16), "off by up to"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_an_adapter_that_does_something_else_is_not_written(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    write, (damage, words) = lora._write, BROKEN[case]

    def damaged(patch: Any, rank: Any, targets: Any, folder: Path, vlm: Any) -> None:
        write(patch, rank, targets, folder, vlm)
        damage(folder)

    monkeypatch.setattr(lora, "_write", damaged)
    before = bits(untrained.model)
    with pytest.raises(PatchError, match=words):
        patch_of(untrained).to_lora(tmp_path / "adapter", untrained)
    assert not list(tmp_path.iterdir()) and equal(bits(untrained.model), before)


def test_logits_that_are_not_the_patchs_are_an_error(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that is right once merged and does nothing while live, as where a server leaves it out."""
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.forward", lambda self, x, *args, **kwargs: self.base_layer(x))
    with pytest.raises(PatchError, match="logits off by"):
        patch_of(untrained).to_lora(tmp_path / "adapter", untrained)
    assert not list(tmp_path.iterdir())


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_embd=32, n_inner=32, n_layer=2, n_head=2, n_positions=64)
    ).eval()


def instructblip() -> Any:
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = OPTConfig(
        vocab_size=300,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
    )
    qformer = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "encoder_hidden_size": 32,
    }
    config = InstructBlipConfig(
        vision_config=tower, qformer_config=qformer, text_config=text.to_dict(), num_query_tokens=4
    )
    return InstructBlipForConditionalGeneration(config).eval()  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("build", "module"),
    [(gpt2, "transformer.h.1.mlp.c_proj"), (instructblip, "language_model.model.decoder.layers.1.fc2")],
)
def test_other_architectures(tmp_path: Path, build: Any, module: str, dtype: torch.dtype) -> None:
    """A square Conv1D, which stores rows where Linear stores columns; and a text decoder that needs no picture."""
    model = build().to(dtype)
    other, patch = copy.deepcopy(model), patch_of(model)
    done = patch.to_lora(tmp_path / "adapter", model)
    assert done.target_modules[1] == module and done.moved > 0.01
    merged = PeftModel.from_pretrained(other, str(tmp_path / "adapter")).merge_and_unload()
    with patch.applied(model):
        assert equal(bits(merged), bits(model))
    assert mmedit.Patch.from_lora(tmp_path / "adapter", model).digest == patch.digest
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"] is (build is gpt2)


def test_the_base_is_loaded_by_its_name(vlm: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    patch = patch_of(vlm)
    patch.to_lora(str(tmp_path / "adapter"))
    assert mmedit.Patch.from_lora(tmp_path / "adapter", vlm).digest == patch.digest


def test_the_base_is_loaded_at_its_revision(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "mmedit.models.loading.load", lambda *args, **options: asked.append((args, options)) or untrained
    )
    patch = patch_of(untrained)
    base = dataclasses.replace(patch.base, model="owner/name", revision="abc")
    dataclasses.replace(patch, base=base).to_lora(tmp_path / "adapter")
    assert asked == [(("owner/name",), {"revision": "abc"})]


def test_weights_that_are_not_there_are_refused(untrained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    patch, down = patch_of(untrained), untrained.model.model.language_model.layers[5].mlp.down_proj
    patch.to_lora(tmp_path / "adapter", untrained)
    down.weight = torch.nn.Parameter(down.weight.to("meta"))
    for call in (
        lambda: patch.to_lora(tmp_path / "other", untrained),
        lambda: mmedit.Patch.from_lora(tmp_path / "adapter", untrained),
    ):
        with pytest.raises(ModelError, match="offloaded"):
            call()
    assert not (tmp_path / "other").exists()


def test_what_an_adapter_cannot_hold_is_refused(untrained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    patch = patch_of(untrained, n_sites=1)
    wide = dataclasses.replace(patch.base, d_ffn=1024)
    many = torch.arange(513), torch.zeros(513, 128)
    big = mmedit.Patch({mmedit.Site(3): many}, {mmedit.Site(3): torch.zeros(513, 128)}, wide)
    with pytest.raises(PatchError, match=r"too many neurons[\s\S]*L3\n  got: 513\n[\s\S]*bake"):
        big.to_lora(tmp_path / "adapter", untrained)
    expert = mmedit.Site(5, 3)
    fused = dataclasses.replace(
        patch, deltas={expert: patch.deltas[mmedit.Site(5)]}, base_rows={expert: patch.base_rows[mmedit.Site(5)]}
    )
    with pytest.raises(PatchError, match=r"fused mixture[\s\S]*L5\.E3[\s\S]*bake"):
        fused.to_lora(tmp_path / "adapter", untrained)
    assert not list(tmp_path.iterdir())


def test_another_model_is_refused(untrained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    patch = patch_of(untrained)
    with torch.no_grad():
        untrained.model.model.language_model.layers[5].mlp.down_proj.weight += 1
    with pytest.raises(BaseMismatchError):
        patch.to_lora(tmp_path / "adapter", untrained)
    nowhere = dataclasses.replace(patch, base=dataclasses.replace(patch.base, model="no-such-model"))
    with pytest.raises(ModelError, match="no-such-model"):
        nowhere.to_lora(tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_nothing_that_is_there_is_overwritten(untrained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    patch = patch_of(untrained)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    patch.to_lora(tmp_path / "empty", untrained)
    for place in ("full", "full/thesis.txt", "none/adapter", "empty"):
        with pytest.raises(OutputError):
            patch.to_lora(tmp_path / place, untrained)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


@pytest.mark.parametrize("options", [{"lora_alpha": 3}, {"lora_alpha": 3, "use_rslora": True}])
def test_a_dense_adapter_of_anybodys_is_a_low_rank_patch(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, options: dict[str, Any]
) -> None:
    config = LoraConfig(
        r=4, target_modules=["down_proj"], layers_to_transform=[1, 3], init_lora_weights=False, **options
    )
    adapted = get_peft_model(copy.deepcopy(untrained.model), config)
    adapted.save_pretrained(tmp_path / "adapter")
    patch = mmedit.Patch.from_lora(tmp_path / "adapter", untrained)
    assert patch.sites == tuple(patch.low_rank) == (mmedit.Site(1), mmedit.Site(3)) and patch.edits == ()
    assert not torch.allclose(logits(untrained.model), logits(adapted), atol=1e-3)
    with patch.applied(untrained):
        assert torch.allclose(logits(untrained.model), logits(adapted), atol=1e-5)


def test_a_row_sparse_adapter_need_not_be_one_hot(untrained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    patch_of(untrained, n_sites=1).to_lora(tmp_path / "adapter", untrained)
    a, b = torch.zeros(8, 512), torch.randn(128, 8)
    a[:, [3, 70]] = torch.randn(8, 2)
    key = f"base_model.model.{MODULE.format(5)}.lora_{{}}.weight"
    rewritten(tmp_path / "adapter", lambda tensors: {key.format("A"): a.bfloat16(), key.format("B"): b})
    units, rows = mmedit.Patch.from_lora(tmp_path / "adapter", untrained).deltas[mmedit.Site(5)]
    assert units.tolist() == [3, 70] and torch.allclose(rows, (b @ a.bfloat16().float()).T[units], atol=1e-6)


def older(key: str) -> str:
    """The key of an adapter that was made for LLaVA before transformers 5."""
    return key.replace("model.language_model.layers", "language_model.model.layers")


@pytest.mark.parametrize("make", [patch_of, low_rank_patch])
def test_adapters_with_the_names_of_before_transformers_5_are_read(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, make: Any
) -> None:
    patch = make(untrained)
    patch.to_lora(tmp_path / "adapter", untrained)
    rewritten(tmp_path / "adapter", lambda tensors: {older(key): tensor for key, tensor in tensors.items()})
    keys = set(load_file(tmp_path / "adapter" / lora.WEIGHTS))
    assert "base_model.model.language_model.model.layers.5.mlp.down_proj.lora_A.weight" in keys
    assert mmedit.Patch.from_lora(tmp_path / "adapter", untrained).digest == patch.digest


REFUSED = {
    "no configuration": (lambda f: (f / lora.CONFIG).unlink(), "not a plain LoRA"),
    "configuration that is no JSON": (lambda f: (f / lora.CONFIG).write_text("{"), "not a plain LoRA"),
    "configuration that is a list": (lambda f: (f / lora.CONFIG).write_text("[]"), "not a plain LoRA"),
    "deep configuration": (lambda f: (f / lora.CONFIG).write_text("[" * 100_000), "not a plain LoRA"),
    "large configuration": (lambda f: (f / lora.CONFIG).write_text(" " * 2**21), "more than"),
    "rank 0": (lambda f: reconfigured(f, r=0), "not a plain LoRA"),
    "another rank": (lambda f: reconfigured(f, r=16), "wrong shape"),
    "negative rank": (lambda f: reconfigured(f, r=-8), "not a plain LoRA"),
    "rank of words": (lambda f: reconfigured(f, r="eight"), "not a plain LoRA"),
    "infinite alpha": (lambda f: reconfigured(f, lora_alpha=float("inf")), "scaling inf"),
    "DoRA": (lambda f: reconfigured(f, use_dora=True), "use_dora"),
    "ranks of their own": (lambda f: reconfigured(f, rank_pattern={"x": 3}), "rank_pattern"),
    "biases": (lambda f: reconfigured(f, bias="all"), "bias"),
    "another tuner": (lambda f: reconfigured(f, peft_type="IA3"), "IA3"),
    "no weights": (lambda f: (f / lora.WEIGHTS).unlink(), "no such patch"),
    "cut off": (lambda f: (f / lora.WEIGHTS).write_bytes((f / lora.WEIGHTS).read_bytes()[:-9]), "cannot read this adapter"),
    "other module": (lambda f: rewritten(f, lambda t: {k.replace("mlp.down", "self_attn.o"): v for k, v in t.items()}), "no W_out of this model"),
    "another class": (lambda f: rewritten(f, lambda t: {k.replace("language_model.", ""): v for k, v in t.items()}), r"one like model\.language_model"),
    "both generations of names": (lambda f: rewritten(f, lambda t: t | {older(k): v.clone() for k, v in t.items()}), "names a module twice"),
    "odd digits": (lambda f: rewritten(f, lambda t: {k.replace("layers.5", "layers.²"): v for k, v in t.items()}), "no W_out of this model"),
    "no lora_B": (lambda f: rewritten(f, lambda t: {k: v for k, v in t.items() if "lora_A" in k}), "cannot read this adapter"),
    "magnitudes": (lambda f: rewritten(f, lambda t: {**t, "base_model.model.x.lora_magnitude_vector": torch.ones(2)}), "not a part of a plain LoRA"),
    "integers": (lambda f: rewritten(f, lambda t: {k: v.int() for k, v in t.items()}), "not a part of a plain LoRA"),
    "narrow": (lambda f: rewritten(f, lambda t: {k: v[:, :9].contiguous() for k, v in t.items()}), "wrong shape"),
    "NaN": (lambda f: rewritten(f, lambda t: {k: v * float("nan") for k, v in t.items()}), "finite"),
    "zeros": (lambda f: rewritten(f, lambda t: {k: v * 0 for k, v in t.items()}), "at least one site"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_is_no_patch_is_refused(
    untrained: mmedit.VisionLanguageModel, tmp_path: Path, case: str
) -> None:
    damage, words = REFUSED[case]
    patch_of(untrained).to_lora(tmp_path / "adapter", untrained)
    damage(tmp_path / "adapter")
    with pytest.raises(PatchError, match=words):
        mmedit.Patch.from_lora(tmp_path / "adapter", untrained)


def test_400_mutated_adapters_are_patches_or_errors(untrained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    from test_fuzz_patch import change_tensor, cut, flip, flip_header, insert, length, nest

    patch_of(untrained, n_sites=1).to_lora(tmp_path / "adapter", untrained)
    path, r = tmp_path / "adapter" / lora.WEIGHTS, random.Random(0)
    content = path.read_bytes()
    for _ in range(400):
        path.unlink()
        path.write_bytes(
            r.choice([change_tensor, cut, flip, flip_header, flip_header, insert, length, nest])(content, r)
        )
        try:
            assert mmedit.Patch.from_lora(path.parent, untrained).sites
        except MmeditError as error:
            assert isinstance(error, PatchError)

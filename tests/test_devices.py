"""Models that are spread, offloaded, or of half precision: what is at hand works, what is not is refused, nothing is widened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForImageTextToText

import mmedit
from mmedit.errors import ModelError
from mmedit.locate import rank
from mmedit.models import product as products
from mmedit.models.checkpoint_files import CHECKPOINTS
from mmedit.models.devices import input_device
from mmedit.models.gradients import without_gradients_of_weights
from mmedit.models.product import product
from mmedit.sightings import source_sightings

HALVES = [torch.bfloat16, torch.float16]
Make = Callable[..., mmedit.VisionLanguageModel]
PARTS = ["model.vision_tower", "model.multi_modal_projector", "model.language_model.embed_tokens", "model.language_model.norm", "model.language_model.rotary_emb", "lm_head"]  # fmt: skip


@pytest.fixture
def spread(trained: mmedit.VisionLanguageModel, tmp_path: Path) -> Make:
    """Makes the shipped LLaVA with modules on the disk, or, as beside a GPU, in a memory from which they are fetched."""

    def make(*away: str, where: str) -> mmedit.VisionLanguageModel:
        source = CHECKPOINTS / "iconworld-llava"
        if where == "disk":
            names = [*PARTS, *(f"model.language_model.layers.{i}" for i in range(6))]
            device_map = {name: "disk" if name in away else "cpu" for name in names}
            model = AutoModelForImageTextToText.from_pretrained(source, device_map=device_map, offload_folder=tmp_path)
        else:
            model = AutoModelForImageTextToText.from_pretrained(source)
            for name in away:
                accelerate.cpu_offload(model.get_submodule(name), execution_device="cpu")
        assert all(p.is_meta for name in away for p in model.get_submodule(name).parameters())
        return mmedit.VisionLanguageModel(model, trained.processor, "spread")

    return make


LAST = ("model.language_model.layers.4", "model.language_model.layers.5")


def weights(vlm: mmedit.VisionLanguageModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in vlm.model.state_dict().items() if not tensor.is_meta}


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_layers_that_are_at_hand_are_located_and_edited(
    where: str, spread: Make, vlm: mmedit.VisionLanguageModel, cat_file: Path, request_of_cat: mmedit.EditRequest
) -> None:
    ours = spread(*LAST, where=where)
    assert ours.caption(cat_file) == vlm.caption(cat_file)
    assert ours.architecture.routes == vlm.architecture.routes and ours.architecture.head == vlm.architecture.head
    for scorer in ("contribution", "activation", "attribution"):
        rankings = [mmedit.locate_word(m, cat_file, "cat", layers=range(4), scorer=scorer, k=9) for m in (ours, vlm)]
        assert rankings[0] == rankings[1]
    editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava").with_hparams(layers=[0, 1, 2, 3])
    before, patch = weights(ours), editor.apply(ours, request_of_cat)
    with patch.applied(vlm):
        assert ours.caption(cat_file) == vlm.caption(cat_file)
        assert all(torch.equal(tensor, vlm.model.state_dict()[name]) for name, tensor in weights(ours).items())
    patch.revert(ours)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(ours).items())


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_what_is_away_is_refused_and_nothing_has_changed(
    where: str, spread: Make, vlm: mmedit.VisionLanguageModel, cat_file: Path, request_of_cat: mmedit.EditRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ours, editor = spread(*LAST, where=where), mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
    before, said = weights(ours), ours.caption(cat_file)
    patch = editor.execute(vlm, request_of_cat)
    assert {site.layer for site in patch.sites} & {4, 5}, "the patch must touch what is away"
    with pytest.raises(ModelError, match=r"W_out of L[45] is offloaded.*(?s:.)*device_map"):
        patch.apply(ours)
    generate, asked = ours.generate_batch, list[Any]()
    monkeypatch.setattr(ours, "generate_batch", lambda *args, **options: asked.append(args) or generate(*args, **options))  # fmt: skip
    for refused in (lambda: mmedit.locate_word(ours, cat_file, "cat"), lambda: editor.apply(ours, request_of_cat)):
        with pytest.raises(ModelError, match=r"W_out of L4 is offloaded(?s:.)*layers="):
            refused()
    assert not asked, "it is told before anything is captioned"
    with pytest.raises(ModelError, match="L4 is offloaded"):  # its neurons' tokens
        mmedit.locate_word(ours, cat_file, "cat", scorer="activation", layers=[4])
    assert ours.caption(cat_file) == said and not mmedit.Stack.of(ours).names
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(ours).items())


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_an_offloaded_unembedding_is_told(where: str, spread: Make, trained: mmedit.VisionLanguageModel, cat_file: Path) -> None:  # fmt: skip
    ours = spread("lm_head", where=where)
    assert ours.caption(cat_file) == trained.caption(cat_file)
    with pytest.raises(ModelError, match="W_U is offloaded"):
        mmedit.locate_word(ours, cat_file, "cat", layers=[0])


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_model_that_is_all_away_still_captions(where: str, spread: Make, trained: mmedit.VisionLanguageModel, cat_file: Path) -> None:  # fmt: skip
    names = [*PARTS[:-2], "lm_head", *(f"model.language_model.layers.{i}" for i in range(6))]
    ours = spread(*names, where=where)
    assert ours.model.device.type == "meta" and input_device(ours.model) == torch.device("cpu")
    assert ours.caption(cat_file) == trained.caption(cat_file)
    assert ours.architecture.routes == trained.architecture.routes


def test_auto_places_a_model_where_it_fits(trained: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    ours = mmedit.load("iconworld-llava", device="auto")
    assert mmedit.locate_word(ours, cat_file, "cat") == mmedit.locate_word(trained, cat_file, "cat")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_located_and_edited_up_to_its_own_rounding(
    dtype: torch.dtype, trained: mmedit.VisionLanguageModel, cat_file: Path, request_of_cat: mmedit.EditRequest
) -> None:
    ours = mmedit.load("iconworld-llava", dtype=dtype)
    seen = source_sightings(ours, cat_file, "cat")
    token = seen[0].occurrence.token_id
    scores, whole = (
        mmedit.scorers.as_scorer("contribution").scores(m, source_sightings(m, cat_file, "cat")) for m in (ours, trained)
    )  # fmt: skip
    for site, ours_at in scores.items():
        o, w_out = seen[0].activations[site], ours.architecture.w_out(site).matrix
        assert o.dtype == w_out.dtype == dtype
        exact = o.double() * (w_out.double() @ ours.architecture.w_u[token].double())  # Eq. 2
        assert torch.allclose(ours_at[0].double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
        assert float((ours_at - whole[site]).abs().max()) < 16 * torch.finfo(dtype).eps * float(whole[site].abs().max())
    editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
    before, patch = weights(ours), editor.apply(ours, request_of_cat)
    theirs = editor.execute(trained, request_of_cat)
    assert set(patch.sites) & set(theirs.sites)
    for site in patch.sites:
        units, base = patch.units(site), before[ours.architecture.w_out(site).name].T
        wanted = (base[units].float() + patch.rows(site)).to(dtype)
        assert torch.equal(ours.architecture.w_out(site).rows(units), wanted)
    patch.revert(ours)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(ours).items())


class Widest(TorchDispatchMode):
    """The most values in a float32 or float64 tensor that any operation gives."""

    values = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        wide = (t.numel() for t in tree_leaves(result) if isinstance(t, Tensor) and t.dtype in (torch.float32, torch.float64))  # fmt: skip
        self.values = max(self.values, *wide, 0)
        return result


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_no_matrix_of_a_half_precision_model_is_widened_whole(
    dtype: torch.dtype, cat_file: Path, request_of_cat: mmedit.EditRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, limit = mmedit.load("iconworld-llava", dtype=dtype), 2**14
    monkeypatch.setattr(products, "VALUES", limit)
    assert min(ours.architecture.w_u.numel(), *(w.matrix.numel() for w in ours.architecture.sites)) > 3 * limit
    seen = source_sightings(ours, cat_file, "cat", final_norm="fold")
    with Widest() as scoring:
        rank(ours, [seen], k=8)
    assert 0 < scoring.values <= limit
    editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
    with Widest() as editing:
        editor.apply(ours, request_of_cat).revert(ours)
    assert 0 < editing.values <= 100 * len(ours.architecture.w_u)  # the tokens of a hundred neurons


def test_weights_that_accelerate_has_put_back_ask_for_gradients_no_more() -> None:
    """It does so in inference mode, after which nothing can make them ask again."""
    plain = torch.nn.Linear(2, 2)
    with torch.inference_mode():
        away = torch.nn.Linear(2, 2)
    with without_gradients_of_weights(torch.nn.Sequential(plain, away)):
        assert not plain.weight.requires_grad and not away.weight.requires_grad
    assert plain.weight.requires_grad


@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 9), st.integers(1, 100), st.sampled_from([*HALVES, torch.float32]))  # fmt: skip
def test_products_do_not_depend_on_how_they_are_cut(n: int, rows: int, d: int, values: int, dtype: torch.dtype) -> None:
    torch.manual_seed(n * rows + d)
    vectors, matrix = torch.randn(n, d), torch.randn(d, rows).to(dtype).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "VALUES", values)
        for m in (matrix, matrix.contiguous()):
            assert torch.allclose(product(vectors, m), vectors @ m.float().T, atol=1e-5)


def test_a_picture_reaches_a_model_on_the_disk(spread: Make, trained: mmedit.VisionLanguageModel) -> None:
    inputs = spread("model.vision_tower", where="disk").inputs(Image.new("RGB", (64, 64)))
    assert all(tensor.device.type == "cpu" for tensor in inputs.values())

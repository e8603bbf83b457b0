"""NaN and infinity: told with the layer that they come from, never located, never written to a patch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import mmedit
from mmedit.background import Background, drawn_pictures
from mmedit.editors.patching import modules_of
from mmedit.editors.statistics import second_moments
from mmedit.errors import MmeditError, ModelError, PatchError
from mmedit.models.finite import bad_weight
from mmedit.rewrites import Rewrite
from mmedit.steps import leads_of

LANGUAGE = "model.language_model.layers"
POISONED = {
    "attention of layer 1": (f"{LANGUAGE}.1.self_attn.v_proj.weight", "L1"),
    "gate of layer 2": (f"{LANGUAGE}.2.mlp.gate_proj.weight", "L2"),
    "W_out of layer 3": (f"{LANGUAGE}.3.mlp.down_proj.weight", "L4"),  # enters the layer above
    "W_out of the last layer": (f"{LANGUAGE}.5.mlp.down_proj.weight", f"{LANGUAGE}.5.mlp.down_proj.weight"),
    "final norm": ("model.language_model.norm.weight", "model.language_model.norm.weight"),
    "unembedding": ("lm_head.weight", "lm_head.weight"),
    "vision tower": ("model.vision_tower.encoder.layers.0.mlp.fc1.weight", "L0"),
}


@contextmanager
def poisoned(vlm: mmedit.VisionLanguageModel, name: str, value: float, row: int = 7) -> Iterator[None]:
    """One number of one weight is NaN or infinity."""
    weight = vlm.model.get_parameter(name)
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.view(len(weight), -1)[row, 0] = value
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


@pytest.mark.parametrize("which", POISONED)
def test_a_poisoned_weight_is_told_by_its_layer(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, which: str
) -> None:
    name, where = POISONED[which]
    with poisoned(vlm, name, torch.nan):
        assert bad_weight(vlm.model) == name
        for locate in (mmedit.locate_nouns, lambda *a: mmedit.locate_word(*a, "cat")):
            with pytest.raises(ModelError, match="not a finite number") as caught:
                locate(vlm, request_of_cat.images)
            assert str(caught.value.where) in (where, name) and name in f"{caught.value.got} {caught.value.where}"
        for editor in ("MMNeurons", "Margin")[: 1 + (which == "W_out of layer 3")]:  # both ask the same of the model
            method = mmedit.editors.EDITORS[editor].from_hparams("iconworld-llava", vlm)
            if editor == "Margin":
                method.unrelated = list(request_of_cat.images)  # a background of 200 pictures would take long
            with pytest.raises(ModelError, match="not a finite number") as caught:
                method.execute(vlm, request_of_cat)
            assert name in f"{caught.value.got} {caught.value.where}"
    assert bad_weight(vlm.model) is None


def test_an_overflow_of_finite_weights_is_told_by_its_layer(
    untrained: mmedit.VisionLanguageModel, cat_file: Path
) -> None:
    """As where a model made for bfloat16 is loaded in float16: every weight is finite, the activations are not."""
    untrained.model.to(torch.float16)
    with torch.no_grad():
        for which in ("gate_proj", "up_proj"):
            untrained.model.get_parameter(f"{LANGUAGE}.2.mlp.{which}.weight").fill_(60000)
    assert bad_weight(untrained.model) is None
    with pytest.raises(ModelError, match="not a finite number") as caught:
        mmedit.locate_word(untrained, cat_file, "cat")
    assert str(caught.value.where) == "L2" and "overflow in torch.float16" in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_patch_never_holds_what_is_no_number(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, value: float
) -> None:
    """The target's row of W_U is poisoned: the caption and the scores are as ever, but Δw would not be finite."""
    target = vlm.tokenizer(" dog", add_special_tokens=False).input_ids[0]
    editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava", vlm)
    with poisoned(vlm, "lm_head.weight", value, target), pytest.raises(MmeditError) as caught:
        editor.execute(vlm, request_of_cat)
    assert isinstance(caught.value, PatchError | ModelError) and caught.value.where


def test_a_lead_that_is_no_number_is_not_taken_for_one(untrained: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    """NaN is not below 0, so an answer that cannot be said would pass for one that is."""
    (generation,) = untrained.generate(cat_file)
    rewrite = Rewrite(cat_file, None, generation, (*generation.ids[:3], min(untrained.end_ids)), (0,))
    assert leads_of(untrained, [rewrite])[0].margins.isfinite().all()
    untrained.architecture.final_norm.weight.data[1] = torch.nan
    with pytest.raises(ModelError, match=r"norm\.weight"):
        leads_of(untrained, [rewrite])


def test_a_caption_without_nouns_is_no_error(vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    assert mmedit.locate_nouns(vlm, cat_file, mmedit.Prompt("What colour is the cat?")) is not None


WHITE = Image.new("RGB", (64, 64), "white")
SPOILED = {  # what is computed wrong, and where that is first seen
    "vision tower": ("model.vision_tower", 0),
    "gate of layer 2": (f"{LANGUAGE}.2.mlp.gate_proj", 2),
    "W_out of the last layer": (f"{LANGUAGE}.5.mlp.down_proj", 5),
}


@contextmanager
def spoiled_by_white(vlm: mmedit.VisionLanguageModel, name: str, value: float) -> Iterator[None]:
    """What a module computes of a white picture, and of nothing else, is NaN or infinity."""
    white, rows = vlm.inputs(WHITE)["pixel_values"].flatten(1), list[Any]([slice(0)])

    def see(module: Any, args: Any, kwargs: Any) -> None:
        pixels = args[0] if args else kwargs["pixel_values"]
        rows[0] = (pixels.flatten(1) == white).all(1).nonzero().flatten()

    def spoil(module: Any, args: Any, output: Any) -> None:
        (output if isinstance(output, torch.Tensor) else output.last_hidden_state)[rows[0]] = value

    hooks = [
        vlm.model.get_submodule("model.vision_tower").register_forward_pre_hook(see, with_kwargs=True),
        vlm.model.get_submodule(name).register_forward_hook(spoil),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", SPOILED)
def test_what_an_unrelated_picture_alone_spoils_is_told_by_its_layer(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, which: str, value: float, tmp_path: Path
) -> None:
    """Nothing is learned from it: no editor makes a patch of such pictures, none is kept on the disk, and all others go on as ever."""
    (name, layer), fine, all_layers = SPOILED[which], drawn_pictures(2), range(6)
    expected = second_moments(vlm, modules_of(vlm.architecture, all_layers), fine, folder=False)
    with spoiled_by_white(vlm, name, value):
        assert Background(vlm, fine).size and vlm.caption(request_of_cat.images)
        with pytest.raises(ModelError, match="not a finite number") as caught:
            Background(vlm, [*fine, WHITE])
        assert caught.value.where == mmedit.Site(layer) and "its weights are finite" in str(caught.value.got)
        for layers in ([5], [1], all_layers):
            w_outs = modules_of(vlm.architecture, layers)
            with pytest.raises(ModelError, match="not a finite number") as caught:
                second_moments(vlm, w_outs, [WHITE, *fine], folder=tmp_path)
            first = next((at for at in layers if at >= layer), 5)
            assert caught.value.where == mmedit.Site(first)
        found = second_moments(vlm, modules_of(vlm.architecture, all_layers), fine, folder=False)
        assert all(torch.equal(found[site], expected[site]) for site in expected)
        for editor in ("Margin", "ROME", "MEMIT") if which == "gate of layer 2" and value == torch.inf else ():
            method = mmedit.editors.EDITORS[editor].from_hparams("iconworld-llava", vlm)
            method.unrelated = [*fine, WHITE]
            with pytest.raises(ModelError, match="not a finite number") as caught:
                method.execute(vlm, request_of_cat)
            assert isinstance(caught.value.where, mmedit.Site) and caught.value.do
    assert not [*tmp_path.rglob("*.safetensors")] and mmedit.Stack.of(vlm).names == ()

"""NaN and infinity: told with the layer that they come from, never located, never written to a patch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import mmedit
from mmedit.errors import MmeditError, ModelError, PatchError
from mmedit.models.finite import bad_weight

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


def test_a_caption_without_nouns_is_no_error(vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    assert mmedit.locate_nouns(vlm, cat_file, mmedit.Prompt("What colour is the cat?")) is not None

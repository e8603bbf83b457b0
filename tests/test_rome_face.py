"""The function face: what a ROME-style harness does with any method, done with ours."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import mmedit
from mmedit.editors import apply_mm_neurons_to_model
from mmedit.errors import RequestError


@pytest.fixture
def model(trained: mmedit.VisionLanguageModel) -> Any:
    return copy.deepcopy(trained.model)


def harness(model: Any, processor: Any, requests: Any, image: Any) -> tuple[str, str, dict[str, torch.Tensor]]:
    """Edit, evaluate, restore as ROME's experiments/evaluate.py does; returns captions before, after and the copies."""
    before = mmedit.VisionLanguageModel(model, processor).caption(image)[0]
    edited, weights_copy = apply_mm_neurons_to_model(
        model,
        processor,
        requests,
        "iconworld-llava",
        copy=False,
        return_orig_weights=True,
        keep_original_weight=False,
        train_ds=None,
    )
    after = mmedit.VisionLanguageModel(edited, processor).caption(image)[0]
    with torch.no_grad():
        for name, original in weights_copy.items():
            edited.get_parameter(name)[...] = original
    return before, after, weights_copy


@pytest.mark.parametrize("form", ["mapping", "list", "request"])
def test_edit_evaluate_restore(model: Any, trained: mmedit.VisionLanguageModel, cat_file: Any, form: str) -> None:
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    request = {"case_id": 0, "image": str(cat_file), "source": "cat", "target": "dog"}
    given = {"mapping": request, "list": [request], "request": mmedit.EditRequest(cat_file, "cat", "dog")}[form]
    before, after, weights_copy = harness(model, trained.processor, given, cat_file)
    assert after == before.replace("cat", "dog") != before
    assert weights_copy and all(torch.equal(original[name], tensor) for name, tensor in weights_copy.items())
    assert all(torch.equal(original[name], tensor) for name, tensor in model.state_dict().items())
    assert harness(model, trained.processor, given, cat_file)[1] == after, "a second round on the same model"


def test_a_copy_leaves_the_model_alone(model: Any, trained: mmedit.VisionLanguageModel, request_of_cat: Any) -> None:
    model.train()
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    edited, weights_copy = apply_mm_neurons_to_model(
        model, trained.processor, request_of_cat, "iconworld-llava", copy=True
    )
    assert edited is not model and weights_copy == {}
    assert all(torch.equal(original[name], tensor) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(original[name], tensor) for name, tensor in edited.state_dict().items())
    assert model.training and edited.training


def test_several_requests_are_edited_together(model: Any, trained: mmedit.VisionLanguageModel, cat_file: Any) -> None:
    ground = trained.caption(cat_file)[0].split()[-1]
    other = "sand" if ground != "sand" else "road"
    requests = [
        {"image": cat_file, "source": "cat", "target": "dog"},
        {"image": cat_file, "source": ground, "target": other},
    ]
    edited, _ = apply_mm_neurons_to_model(model, trained.processor, requests, "iconworld-llava")
    assert mmedit.VisionLanguageModel(edited, trained.processor).caption(cat_file)[0].split()[-1] == other


def test_a_request_that_fails_leaves_the_model_as_it_was(
    model: Any, trained: mmedit.VisionLanguageModel, cat_file: Any
) -> None:
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    requests = [
        {"image": cat_file, "source": "cat", "target": "dog"},
        {"image": cat_file, "source": "robot", "target": "dog"},
    ]
    with pytest.raises(RequestError, match="does not say 'robot'"):
        apply_mm_neurons_to_model(model, trained.processor, requests, "iconworld-llava")
    with pytest.raises(RequestError, match="lacks fields"):
        apply_mm_neurons_to_model(model, trained.processor, {"prompt": "x"}, "iconworld-llava")
    assert all(torch.equal(original[name], tensor) for name, tensor in model.state_dict().items())

"""The shipped checkpoints are unmodified models of their families that have learned their world."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import mmedit
from mmedit.models.checkpoint_files import CHECKPOINTS
from mmedit.models.forcing import forced
from mmedit.models.loading import shipped_models
from mmedit.testbed.measure import measure
from mmedit.testbed.train import FAMILIES

FLOORS = {  # of things, captions and questions right: below what the model cards say by the chance of a hundred pictures
    "iconworld-llava": (0.96, 0.95, 0.92),
    "iconworld-instructblip": (0.88, 0.82, 0.82),
    "iconworld-mplug-owl2": (0.93, 0.92, 0.9),
}
CLASSES = {
    "iconworld-llava": "LlavaForConditionalGeneration",
    "iconworld-instructblip": "InstructBlipForConditionalGeneration",
    "iconworld-mplug-owl2": "MPLUGOwl2LlamaForCausalLM",
}


@pytest.fixture(scope="module", params=shipped_models())
def shipped(request: pytest.FixtureRequest) -> mmedit.VisionLanguageModel:
    return mmedit.load(request.param)


def test_every_shipped_checkpoint_can_be_trained_again() -> None:
    assert set(shipped_models()) <= set(FAMILIES) == set(CLASSES)


def test_it_is_small_and_loads_through_the_auto_classes(pictures: Any, shipped: mmedit.VisionLanguageModel) -> None:
    folder = CHECKPOINTS / shipped.name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 10e6
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model).__name__ == CLASSES[shipped.name] and model.dtype == torch.float32
    text = shipped.render(None)
    inputs = processor(images=[pictures[0][0]], text=[text], return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=30)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == shipped.caption(pictures[0][0])[0]
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert len(shipped.architecture.w_outs) >= 6


def test_it_has_the_weights_that_training_would_give_a_place(shipped: mmedit.VisionLanguageModel) -> None:
    """The training script builds a model of the same shape and prompt."""
    family = FAMILIES[shipped.name]
    processor = family.build_processor()
    built = family.build_model(processor, 0)
    assert {n: p.shape for n, p in built.named_parameters()} == {
        n: p.shape for n, p in shipped.model.named_parameters()
    }
    ours, theirs = (p.tokenizer.backend_tokenizer for p in (processor, shipped.processor))
    assert ours.get_vocab() == theirs.get_vocab()


def test_it_has_learned_its_world(shipped: mmedit.VisionLanguageModel) -> None:
    """A sample of what `python -m mmedit.testbed.measure` shows on 1000 pictures, with room for chance."""
    scores = measure(shipped, "benchmark", n=100)
    things, captions, questions = FLOORS[shipped.name]
    assert scores.things_right >= things and scores.captions_right >= captions
    assert scores.rephrased_right >= captions and scores.questions_right >= questions
    assert scores.facts_right >= 0.99


def test_captions_do_not_depend_on_the_batch_size(shipped: mmedit.VisionLanguageModel, pictures: Any) -> None:
    images = [picture for picture, _, _ in pictures[:16]]
    assert shipped.model.dtype == torch.float32
    assert (
        shipped.caption(images, batch_size=1)
        == shipped.caption(images, batch_size=7)
        == shipped.caption(images, batch_size=16)
    )


@pytest.mark.parametrize("with_image", [True, False])
def test_padding_does_not_change_an_answer(
    with_image: bool, shipped: mmedit.VisionLanguageModel, pictures: Any
) -> None:
    """Prompts of different lengths in one batch, about pictures and without."""
    prompts = [
        "What is the ground?",
        "How many things are there?",
        None if with_image else "What do red and blue make?",
    ]
    images = [picture for picture, _, _ in pictures[:3]] if with_image else None
    answers = [[20, 21, 22], [30], [40, 41]]
    together = forced(shipped, images, prompts, answers)
    generated = shipped.generate_batch(shipped.inputs(images, prompts))
    for i, (row, generation) in enumerate(zip(together, generated, strict=True)):
        image = images and images[i : i + 1]
        alone = forced(shipped, image, prompts[i : i + 1], answers[i : i + 1])[0]
        assert torch.allclose(row.answer, alone.answer, atol=1e-4, rtol=0)
        assert generation == shipped.generate_batch(shipped.inputs(image, prompts[i : i + 1]))[0]

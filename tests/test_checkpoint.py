"""The shipped LLaVA is an unmodified transformers model that has learned its world."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

import mmedit
from mmedit.models.vlm import CHECKPOINTS
from mmedit.testbed.measure import measure

FOLDER = CHECKPOINTS / "iconworld-llava"


def test_it_is_small_and_loads_through_the_auto_classes(pictures: Any, trained: mmedit.VisionLanguageModel) -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 10e6
    model, processor = AutoModelForImageTextToText.from_pretrained(FOLDER), AutoProcessor.from_pretrained(FOLDER)
    assert type(model) is LlavaForConditionalGeneration
    text = "USER: <image>\nDescribe the image in few words. ASSISTANT: An image of"
    inputs = processor(images=[pictures[0][0]], text=[text], return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=30)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == trained.caption(pictures[0][0])[0]
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert len(trained.architecture.w_outs) >= 6


def test_it_has_learned_its_world(trained: mmedit.VisionLanguageModel) -> None:
    """A sample of what `python -m mmedit.testbed.measure` shows on 1000 pictures, with room for chance."""
    scores = measure(trained, "benchmark", n=100)
    assert scores.things_right >= 0.93
    assert scores.captions_right >= 0.85
    assert scores.questions_right >= 0.88
    assert scores.facts_right >= 0.99


def test_captions_do_not_depend_on_the_batch_size(trained: mmedit.VisionLanguageModel, pictures: Any) -> None:
    images = [picture for picture, _, _ in pictures]
    assert trained.model.dtype == torch.float32
    assert (
        trained.caption(images, batch_size=1)
        == trained.caption(images, batch_size=7)
        == trained.caption(images, batch_size=48)
    )


def test_left_padding_does_not_change_an_answer(trained: mmedit.VisionLanguageModel, pictures: Any) -> None:
    """Prompts of different lengths in one batch, as a user of `vlm.model` may make them."""
    images, prompts = [pictures[0][0], pictures[1][0]], ["What is the ground?", "How many things are there?"]
    alone = [trained.caption(image, prompt)[0] for image, prompt in zip(images, prompts, strict=True)]
    texts = [f"USER: <image>\n{prompt} ASSISTANT:" for prompt in prompts]
    batch = trained.processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side="left")
    assert [g.text.strip() for g in trained.generate_batch(batch)] == alone

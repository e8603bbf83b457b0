"""IconWorld's mPLUG-Owl2 before training: its size, what it begins with, and that packed rows teach what separate ones would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

import mmedit
from mmedit.models.mplug_owl2 import MPLUGOwl2LlamaForCausalLM, MPLUGOwl2Processor
from mmedit.testbed.batches import BatchMaker
from mmedit.testbed.mplug_owl2 import MPLUG_OWL2, build_mplug_owl2, build_processor
from mmedit.testbed.world import render


@pytest.fixture(scope="module")
def ours(processor: LlavaProcessor) -> MPLUGOwl2Processor:
    return build_processor(processor.tokenizer)


@pytest.fixture(scope="module")
def begun(ours: MPLUGOwl2Processor) -> MPLUGOwl2LlamaForCausalLM:
    model = build_mplug_owl2(ours).eval()
    MPLUG_OWL2.begin(model, torch.empty(0))
    return model


def test_the_seed_decides_the_weights_and_the_file_is_small(ours: MPLUGOwl2Processor, tmp_path: Path) -> None:
    first, again, other = (build_mplug_owl2(ours, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert sum(2 * tensor.numel() for tensor in first.values()) < 10e6


def test_it_begins_with_the_tower_and_the_language_model_of_llava(
    begun: MPLUGOwl2LlamaForCausalLM, ours: MPLUGOwl2Processor, trained: mmedit.VisionLanguageModel
) -> None:
    llava: LlavaForConditionalGeneration = trained.model
    pixels, _ = BatchMaker(MPLUG_OWL2, ours, 3, 0).labelled(0)
    with torch.inference_mode():
        wanted = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
        tower = begun.model.vision_model
        assert torch.allclose(tower.encoder(tower.embeddings(pixels)), wanted, atol=1e-4)
        ids = torch.tensor([[1, 30, 40, 50, 60]])
        assert torch.allclose(begun(ids).logits, llava(ids).logits, atol=1e-4)
        patches, queries = MPLUG_OWL2.features(begun, pixels)
    assert patches.shape == (3, 64, 128) and queries.shape == (3, 16, 128)


def test_packed_rows_give_what_the_library_gives_row_by_row(
    begun: MPLUGOwl2LlamaForCausalLM, ours: MPLUGOwl2Processor
) -> None:
    """The last state before each caption, from a packed row and from `vlm.inputs`."""
    maker = BatchMaker(MPLUG_OWL2, ours, 3, 1)
    batch = maker.batch(0)
    vlm = mmedit.VisionLanguageModel(begun, ours, "begun")
    with torch.inference_mode():
        packed = MPLUG_OWL2.hidden_states(begun, batch)
        for row, scene in enumerate(maker.scenes(0)):
            asked = (batch.labels[row] != -100).nonzero()[0, 0]  # the caption is the first exchange
            alone = begun.model(**vlm.inputs([render(scene)[0]])).last_hidden_state[0, -1]
            assert torch.allclose(packed[row, asked], alone, atol=1e-4)

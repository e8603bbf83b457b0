"""InstructBLIP with a Flan-T5 language model: an encoder that reads the picture, and a decoder whose neurons are located and edited."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration, T5Config

import mmedit
from mmedit.editors import Margin, MarginHparams, MMNeurons, MMNeuronsHparams
from mmedit.models.forcing import dictated, forced
from mmedit.patches.live import stack_of


@pytest.fixture(scope="module")
def t5() -> mmedit.VisionLanguageModel:
    """A tiny one with random weights and the shipped checkpoint's processor; gated units and an untied head, as Flan-T5 has."""
    shipped = mmedit.load("iconworld-instructblip")
    text = T5Config(
        vocab_size=len(shipped.tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, pad_token_id=shipped.tokenizer.pad_token_id, eos_token_id=shipped.tokenizer.eos_token_id,
        decoder_start_token_id=shipped.tokenizer.pad_token_id,
    )  # fmt: skip
    old = shipped.model.config
    config = InstructBlipConfig(
        vision_config=old.vision_config.to_dict(), qformer_config=old.qformer_config.to_dict(), text_config=text.to_dict() | {"model_type": "t5"},
        num_query_tokens=old.num_query_tokens, image_token_index=old.image_token_index,
    )  # fmt: skip
    torch.manual_seed(0)
    model = InstructBlipForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.mul_(2.0) if parameter.dim() > 1 else None
    return mmedit.VisionLanguageModel(model, shipped.processor, "tiny-instructblip-t5")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.new("RGB", (64, 64), (200, 30, 60))


def test_the_decoder_is_what_is_looked_at(t5: mmedit.VisionLanguageModel) -> None:
    sites = t5.architecture.sites
    assert [site.layer for site in sites] == [0, 1, 2]
    assert all(".decoder.block." in site.path and site.path.endswith(".wo") for site in sites)
    assert {(site.d_ffn, site.d_model) for site in sites} == {(48, 32)}


def test_forcing_is_generation(t5: mmedit.VisionLanguageModel, picture: Image.Image) -> None:
    made = t5.generate([picture], max_new_tokens=6)[0]
    (quick,), (slow,) = forced(t5, [picture], None, [made.ids]), dictated(t5, [picture], None, [made.ids])
    assert quick.answer.argmax(-1).tolist() == list(made.ids)
    assert torch.allclose(quick.logits[-1 - len(made.ids) :], slow.logits, atol=1e-4)


def test_a_row_edit_moves_the_logits_and_comes_out_again(
    t5: mmedit.VisionLanguageModel, picture: Image.Image, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in t5.model.state_dict().items()}
    said = t5.caption([picture])[0]
    request = mmedit.EditRequest(picture, None, "a cat")
    with pytest.warns(UserWarning):
        patch = Margin(MarginHparams(n_unrelated=2, rounds=2)).execute(t5, request)
    patch.save(tmp_path / "p.safetensors")
    loaded = mmedit.Patch.load(tmp_path / "p.safetensors")
    loaded.apply(t5)
    assert t5.caption([picture])[0] != said
    loaded.revert(t5)
    assert stack_of(t5).names == ()
    assert all(torch.equal(tensor, before[name]) for name, tensor in t5.model.state_dict().items())


def test_algorithm_1_finds_its_neurons_in_the_decoder(t5: mmedit.VisionLanguageModel, picture: Image.Image) -> None:
    patch = MMNeurons(MMNeuronsHparams(beta=0.0)).execute(t5, mmedit.EditRequest(picture, None, "a cat"))
    assert patch.base.model_type == "instructblip"
    assert set(patch.sites) <= {mmedit.Site(layer) for layer in range(3)}

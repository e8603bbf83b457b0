"""The native mPLUG-Owl2 against every number that the original implementation computed (shared/fixtures/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, CLIPImageProcessorPil, LlamaTokenizer

from mmedit.models.architecture import Architecture
from mmedit.models.mplug_owl2 import MPLUGOwl2LlamaForCausalLM, MPLUGOwl2Processor
from mmedit.models.mplug_owl2.abstractor import grid_positions, sin_cos
from mmedit.neuron import Site
from mmedit.trace import Trace

FIXTURE = Path(__file__).parents[2] / "shared" / "fixtures" / "mplug_owl2"
TOLERANCE = 1e-3  # of the fixture's README; what is seen is 5e-5
pytestmark = pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"the reference numbers are not at {FIXTURE}")


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest) -> MPLUGOwl2LlamaForCausalLM:
    loaded = AutoModelForImageTextToText.from_pretrained(
        FIXTURE, dtype=torch.float32, attn_implementation=request.param
    )
    assert isinstance(loaded, MPLUGOwl2LlamaForCausalLM)
    return loaded.eval()


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(FIXTURE / "outputs.safetensors")
    return tensors


def inputs_of(case: str, model: MPLUGOwl2LlamaForCausalLM) -> dict[str, Tensor]:
    """The stored inputs, with as many -200 for the image as the model has image tokens."""
    stored = load_file(FIXTURE / "inputs.safetensors")
    n = model.config.image_seq_length
    ids = [token for t in stored[f"{case}.input_ids"][0].tolist() for token in [t] * (n if t == -200 else 1)]
    pixels = {"pixel_values": stored[f"{case}.pixel_values"]} if f"{case}.pixel_values" in stored else {}
    return {"input_ids": torch.tensor([ids]), **pixels}


def entering(module: Any, into: list[Any]) -> Any:
    return module.register_forward_pre_hook(lambda m, args, kwargs: into.append(args or kwargs), with_kwargs=True)


def prefill(model: MPLUGOwl2LlamaForCausalLM, case: str) -> dict[str, Tensor]:
    """Everything that the fixture has of one forward call."""
    inputs, seen, layer_inputs = inputs_of(case, model), [], []
    handles = [entering(model.model.layers[0], layer_inputs)]
    handles += [entering(layer.mlp.down_proj, seen) for layer in model.model.layers]
    try:
        with torch.inference_mode(), Trace(Architecture(model), activation="act_fn") as gates:
            out = model(**inputs, output_hidden_states=True, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    sites = [Site(i) for i in range(model.config.num_hidden_layers)]
    down = torch.stack([args[0] for args in seen])
    got = {
        "logits": out.logits, "down_proj_input_last": down[:, :, -1],
        "act_fn_output_last": torch.stack([gates.activations(site)[0] for site in sites]),
        "multiway_indices": (inputs["input_ids"] == model.config.image_token_id).long(),
    }  # fmt: skip
    if "pixel_values" in inputs:
        cache = out.past_key_values.layers[-1]
        with torch.inference_mode():
            image = model.get_image_features(inputs["pixel_values"])
            embeds, is_image = model.model._embed(**inputs)
        assert torch.equal(is_image.long(), got["multiway_indices"])
        got |= {
            "down_proj_input": down, "hidden_states": torch.stack(out.hidden_states), "past_key_last_layer": cache.keys,
            "past_value_last_layer": cache.values, "vision_last_hidden_state": image.last_hidden_state,
            "image_features": image.pooler_output, "inputs_embeds": embeds,
        }  # fmt: skip
    return got


def generation(model: MPLUGOwl2LlamaForCausalLM, case: str, use_cache: bool) -> dict[str, Tensor]:
    """Everything that the fixture has of greedy generation; the activations as the library records them."""
    inputs = inputs_of(case, model)
    architecture = Architecture(model)
    with Trace(architecture) as trace:
        out = model.generate(
            **inputs, max_new_tokens=12, do_sample=False, use_cache=use_cache, eos_token_id=None, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    return {
        "generated_ids": out.sequences[:, inputs["input_ids"].shape[1] :],
        "generated_scores": torch.stack(out.scores, 1),
        "generation_down_proj_input": torch.stack([trace.activations(site) for site in sorted(architecture.w_outs)], 1),
    }


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("case", ["single", "text_only"])
def test_every_number_of_the_original_comes_out(
    model: MPLUGOwl2LlamaForCausalLM, expected: dict[str, Tensor], case: str, use_cache: bool
) -> None:
    got = prefill(model, case) | generation(model, case, use_cache)
    assert {f"{case}.{name}" for name in got} == {name for name in expected if name.startswith(f"{case}.")}
    for name, tensor in got.items():
        reference = expected[f"{case}.{name}"]
        assert tensor.shape == reference.shape, name
        if reference.is_floating_point():
            torch.testing.assert_close(
                tensor, reference, rtol=0, atol=TOLERANCE, msg=lambda text, n=name: f"{n}: {text}"
            )
        else:
            assert torch.equal(tensor, reference), name


def test_the_published_names_load_without_renaming() -> None:
    _, loading = MPLUGOwl2LlamaForCausalLM.from_pretrained(FIXTURE, output_loading_info=True)
    assert not any(loading.values()), loading


def test_what_is_saved_has_the_published_names(tmp_path: Path) -> None:
    """All but the rotary frequencies, which are computed."""
    model = MPLUGOwl2LlamaForCausalLM.from_pretrained(FIXTURE)
    model.save_pretrained(tmp_path)
    saved, published = load_file(tmp_path / "model.safetensors"), load_file(FIXTURE / "model.safetensors")
    assert set(published) - set(saved) == {f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3)}
    assert set(saved) <= set(published)
    assert all(torch.equal(tensor, published[name]) for name, tensor in saved.items())


def test_stored_positions_are_the_computed_ones() -> None:
    stored = load_file(FIXTURE / "pos_embed_buffers.safetensors")
    assert stored
    for name, tensor in stored.items():
        n, width = tensor.shape
        cpu = torch.device("cpu")
        ours = sin_cos(torch.arange(n), width) if "q_pos" in name else grid_positions(round((n - 1) ** 0.5), width, cpu)
        assert torch.allclose(ours, tensor, atol=1e-5), name


def test_a_file_with_stored_positions_is_read_as_well(tmp_path: Path) -> None:
    both = load_file(FIXTURE / "model.safetensors") | load_file(FIXTURE / "pos_embed_buffers.safetensors")
    save_file(both, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((FIXTURE / "config.json").read_bytes())
    _, loading = MPLUGOwl2LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading


def test_pictures_are_preprocessed_as_by_the_original_code() -> None:
    stored = load_file(FIXTURE / "preprocess.safetensors")
    picture = stored.pop("image_uint8").numpy().astype(np.uint8)
    conventions = {"quick_start": "resize", "resize": "resize", "pad": "pad", "plain_center_crop": "crop"}
    assert set(conventions) == set(stored)
    for name, how in conventions.items():
        processor = MPLUGOwl2Processor(
            CLIPImageProcessorPil.from_pretrained(FIXTURE), LlamaTokenizer(), image_aspect_ratio=how
        )
        batch = processor(images=picture, text="<|image|>", return_tensors="pt")
        assert torch.equal(batch["pixel_values"], stored[name]), name


def test_prompts_are_tokenized_as_by_the_original_code() -> None:
    tokenizer = LlamaTokenizer.from_pretrained(FIXTURE / "tokenizer")
    processor = MPLUGOwl2Processor(CLIPImageProcessorPil(), tokenizer, num_image_tokens=3)
    cases = json.loads((FIXTURE / "tokenizer" / "expected_ids.json").read_text())
    assert len(cases) == 7
    for case in cases:
        assert processor.input_ids(case["prompt"]) == case["ids"], case["prompt"]

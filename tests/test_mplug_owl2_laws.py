"""Laws of the native mPLUG-Owl2, on a small model with the language half of iconworld-llava: batches, cache, modalities, saving."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlavaProcessor

from mmedit.errors import RequestError
from mmedit.models.mplug_owl2 import MPLUGOwl2Config, MPLUGOwl2LlamaForCausalLM
from mmedit.models.mplug_owl2.decoder import Multiway
from mmedit.testbed.mplug_owl2 import begin, build_mplug_owl2, build_processor

IMAGE = -200
N = 17  # image tokens


@pytest.fixture(scope="module")
def model(processor: LlavaProcessor) -> MPLUGOwl2LlamaForCausalLM:
    """A random abstractor, strong enough that pictures matter, and pairs whose halves are drawn apart."""
    made = build_mplug_owl2(build_processor(processor.tokenizer)).eval()
    begin(made, torch.empty(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.model.visual_abstractor.parameters():
            if parameter.dim() == 2:
                parameter *= 4
        for module in made.modules():
            if isinstance(module, Multiway):
                for parameter in module.multiway[1].parameters():
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def pixels(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def row(*parts: int | str) -> list[int]:
    """Token ids, `i` for a picture."""
    return [token for part in parts for token in ([IMAGE] * N if part == "i" else [int(part)])]


ROWS = [row(1, 40, "i", 50, 60, 70), row(1, 300), row(1, "i", 9, 9, "i", 80), row(1, 200, 210, 220, "i")]
PICTURES = [[0], [], [1, 2], [3]]


def padded(rows: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[3] * (longest - len(r)) + r for r in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows]),
    }


def single(i: int, images: Tensor) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([ROWS[i]])} | ({"pixel_values": images[PICTURES[i]]} if PICTURES[i] else {})


def greedy(model: MPLUGOwl2LlamaForCausalLM, **options: Any) -> Tensor:
    ids: Tensor = model.generate(**options, do_sample=False, max_new_tokens=8, min_new_tokens=8)
    return ids[:, options["input_ids"].shape[1] :]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_left_padded_batch_is_its_rows_one_by_one(model: MPLUGOwl2LlamaForCausalLM, attention: str) -> None:
    """Rows of one picture, none and two, of different lengths."""
    images = pixels(4)
    model.set_attn_implementation(attention)
    with torch.inference_mode():
        together = model(**padded(ROWS), pixel_values=images).logits
        said = greedy(model, **padded(ROWS), pixel_values=images)
        for i, ids in enumerate(ROWS):
            alone = model(**single(i, images)).logits[0]
            assert torch.allclose(together[i, -len(ids) :], alone, atol=1e-3)
            assert torch.equal(said[i : i + 1], greedy(model, **single(i, images)))
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_cache_changes_nothing(model: MPLUGOwl2LlamaForCausalLM, cache: str) -> None:
    batch = padded(ROWS) | {"pixel_values": pixels(4)}
    assert torch.equal(greedy(model, **batch, use_cache=False), greedy(model, **batch, cache_implementation=cache))


def test_beams_keep_the_pictures_of_a_row_together(model: MPLUGOwl2LlamaForCausalLM) -> None:
    """The score of a beam is the mean log-probability that the model gives to its words, with the pictures of its row."""
    images = pixels(4)
    found = model.generate(
        **padded(ROWS), pixel_values=images, num_beams=2, max_new_tokens=4, min_new_tokens=4, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    for i, ids in enumerate(ROWS):
        said = found.sequences[i, -4:]
        whole = single(i, images) | {"input_ids": torch.tensor([[*ids, *said.tolist()]])}
        with torch.inference_mode():
            spoken = model(**whole).logits[0, -5:-1].log_softmax(-1).gather(1, said[:, None])
        assert torch.allclose(spoken.mean(), found.sequences_scores[i], atol=1e-3)


def test_the_second_half_is_for_image_positions_and_the_first_for_all_others(model: MPLUGOwl2LlamaForCausalLM) -> None:
    batch = {"input_ids": torch.tensor([row(1, 40, "i", 50, 60)]), "pixel_values": pixels(1)}
    words = {"input_ids": torch.tensor([row(1, 40, 50, 60)])}
    pairs = {
        n: m for i in (0, 5) for n, m in model.model.layers[i].named_modules(prefix=str(i)) if isinstance(m, Multiway)
    }
    assert len(pairs) == 2 * 4
    with torch.inference_mode():
        shown, plain = model(**batch).logits[0], model(**words).logits[0]
        for name, pair in pairs.items():
            for way, module in enumerate(pair.multiway):
                kept = module.weight.clone()
                module.weight.mul_(1.5)
                moved = (model(**batch).logits[0] - shown).abs().amax(-1) > 1e-6
                assert not moved[0] or way == 0, name  # what precedes the image does not see it
                assert moved[2 : 2 + N].any() or way == 0, name
                assert torch.equal(model(**words).logits[0], plain) is (way == 1), name
                module.weight.copy_(kept)


def test_attentions_come_out(model: MPLUGOwl2LlamaForCausalLM) -> None:
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        maps = model(**single(0, pixels(1)), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    n = len(ROWS[0])
    assert [tuple(m.shape) for m in maps] == [(1, 4, n, n)] * 6
    for m in maps:
        assert torch.allclose(m.sum(-1), torch.ones(1, 4, n), atol=1e-4) and not m.triu(1).any()


def test_embeddings_with_their_modality_are_the_ids(model: MPLUGOwl2LlamaForCausalLM) -> None:
    ids, images = torch.tensor([ROWS[0]]), pixels(1)
    with torch.inference_mode():
        embeds = model.get_input_embeddings()(ids.clamp(min=0))
        embeds[ids == IMAGE] = model.get_image_features(images).pooler_output[0]
        wanted = model(input_ids=ids, pixel_values=images).logits
        given = model(inputs_embeds=embeds, modality_indicators=(ids == IMAGE).long()).logits
        as_text = model(inputs_embeds=embeds, modality_indicators=torch.zeros_like(ids)).logits
    assert torch.allclose(given, wanted, atol=1e-5) and not torch.allclose(as_text, wanted, atol=1e-2)
    with pytest.raises(RequestError, match="modality_indicators"):
        model(inputs_embeds=embeds)
    with pytest.raises(RequestError, match="either input_ids or inputs_embeds"):
        model(input_ids=ids, inputs_embeds=embeds)


@pytest.mark.parametrize(("ids", "n"), [(ROWS[0], 0), (ROWS[0], 2), (ROWS[1], 1), (row(1, IMAGE, 5), 1)])
def test_places_without_pictures_and_pictures_without_places_are_refused(
    model: MPLUGOwl2LlamaForCausalLM, ids: list[int], n: int
) -> None:
    images = {"pixel_values": pixels(n)} if n else {}
    with pytest.raises(RequestError, match=f"{ids.count(IMAGE)} image tokens, {n} pictures"):
        model(input_ids=torch.tensor([ids]), **images)


@settings(max_examples=15, deadline=None)
@given(shown=st.permutations(range(3)))
def test_pictures_go_to_their_places_in_reading_order(model: MPLUGOwl2LlamaForCausalLM, shown: list[int]) -> None:
    images = pixels(3)
    ids = torch.tensor([row(1, "i", 5, "i"), row(*[1] * (N + 2), "i")])
    with torch.inference_mode():
        features = model.get_image_features(images).pooler_output
        embeds, is_image = model.model._embed(ids, images[shown])
    assert not torch.allclose(features[0], features[1], atol=0.1)
    assert is_image is not None and torch.allclose(embeds[is_image].reshape(3, N, -1), features[shown], atol=1e-5)


def test_the_loss_is_that_of_the_next_word_and_not_of_image_tokens(model: MPLUGOwl2LlamaForCausalLM) -> None:
    ids, images = torch.tensor([ROWS[0]]), pixels(1)
    with torch.inference_mode():
        out = model(input_ids=ids, pixel_values=images, labels=ids)
    words = ids[0, 1:] != IMAGE
    wanted = nn.functional.cross_entropy(out.logits[0, :-1][words], ids[0, 1:][words])
    assert torch.allclose(out.loss, wanted, atol=1e-5)
    assert model(input_ids=ids, pixel_values=images, return_dict=False)[0].shape == out.logits.shape
    last = model(input_ids=ids, pixel_values=images, logits_to_keep=2).logits
    assert torch.allclose(last, out.logits[:, -2:], atol=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_every_weight_gets_a_gradient_with_checkpointing_or_without(model: MPLUGOwl2LlamaForCausalLM) -> None:
    ids, gradients = torch.tensor([ROWS[0]]), []
    for checkpointing in (False, True):
        trained = copy.deepcopy(model).train()
        if checkpointing:
            trained.gradient_checkpointing_enable()
        trained(input_ids=ids, pixel_values=pixels(1), labels=ids, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in trained.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.any(), name
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_single(model: MPLUGOwl2LlamaForCausalLM, dtype: torch.dtype) -> None:
    half, batch = copy.deepcopy(model).to(dtype), padded(ROWS)
    with torch.inference_mode():
        wanted = model(**batch, pixel_values=pixels(4)).logits
        given = half(**batch, pixel_values=pixels(4).to(dtype)).logits
        assert half(**batch, pixel_values=pixels(4)).logits.equal(given)  # pixels are cast
    assert given.dtype == dtype
    seen = batch["attention_mask"].bool()
    assert (given.float() - wanted)[seen].std() < (0.05 if dtype == torch.bfloat16 else 0.01) * wanted[seen].std()


@pytest.mark.parametrize("form", ["safetensors", "sharded .bin"])
def test_saving_and_loading_is_the_identity(model: MPLUGOwl2LlamaForCausalLM, tmp_path: Path, form: str) -> None:
    """The published file is in .bin shards and has rotary frequencies in every layer."""
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert set(weights) == set(model.state_dict())
    if form == "sharded .bin":
        stale = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.full((16,), 1e30) for i in range(6)}
        shards = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
        where = {name: shards[len(name) % 2] for name in weights | stale}
        for shard in shards:
            torch.save({n: t for n, t in (weights | stale).items() if where[n] == shard}, tmp_path / shard)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        (tmp_path / "model.safetensors").unlink()
    again, loading = MPLUGOwl2LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())
    batch = padded(ROWS) | {"pixel_values": pixels(4)}
    with torch.inference_mode():
        assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)


def test_weights_missing_from_a_file_are_drawn_and_not_what_is_in_memory(
    model: MPLUGOwl2LlamaForCausalLM, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    visual = [name for name in weights if "visual_abstractor" in name or "vision_model" in name]
    save_file({n: t for n, t in weights.items() if n not in visual}, tmp_path / "model.safetensors", {"format": "pt"})
    drawn, loading = MPLUGOwl2LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(loading["missing_keys"]) == set(visual)
    for name in visual:
        tensor = drawn.state_dict()[name]
        norm = "norm" in name or "ffn_ln" in name
        spread = 0.0 if norm or name.endswith("bias") else 0.02
        assert abs(float(tensor.std()) - spread) < 0.005, name


def test_the_configuration_survives_and_reads_only_what_it_knows(tmp_path: Path) -> None:
    old = {
        "num_learnable_queries": 8,
        "tie_word_embeddings": True,
        "model_type": "mplug_owl_visual_abstract",
        "grid_size": None,
    }
    config = MPLUGOwl2Config(visual_config={"visual_abstractor": old}, rms_norm_eps=1e-5)
    config.save_pretrained(tmp_path)
    again = MPLUGOwl2Config.from_pretrained(tmp_path)
    assert again.visual_config == {"visual_abstractor": old} and again.rms_norm_eps == 1e-5
    assert again.abstractor == config.abstractor and again.abstractor.grid_size == 32 and again.image_seq_length == 9
    assert again.image_token_id == again.image_token_index == IMAGE and not again.tie_word_embeddings


def test_the_default_configuration_is_the_published_size() -> None:
    """8.2 B, as its authors say; the exact number is that of the original classes (shared/notes/mplug_owl2.md)."""
    with torch.device("meta"):
        model = MPLUGOwl2LlamaForCausalLM(MPLUGOwl2Config())
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_197_859_328
    assert tuple(model.model.layers[31].self_attn.k_proj.multiway[1].weight.shape) == (4096, 4096)

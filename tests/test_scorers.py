"""Scorers: each gives what its definition says, by another path, and leaves the model as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import mmedit
from mmedit.cli import app
from mmedit.concepts import Occurrence
from mmedit.errors import HparamsError, ModelError, RequestError
from mmedit.locate import rank
from mmedit.models.forcing import with_answers
from mmedit.models.vlm import Generation
from mmedit.scorers import SCORERS, Activation, Attribution, Contribution, Scorer, as_scorer
from mmedit.scorers.attribution import attributions
from mmedit.sightings import Sighting, sightings

LLAMA = {"vocab_size": 528, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}  # fmt: skip
OPT = {"vocab_size": 528, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 64}  # fmt: skip
Q_FORMER = {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "encoder_hidden_size": 32}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def randomise(model: nn.Module) -> None:
    """Weights so large that logits and gradients are far from 0, the same each time."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.normal_(0, 0.2)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8))


@pytest.fixture
def tiny(processor: t.LlavaProcessor) -> mmedit.VisionLanguageModel:
    """A LLaVA of 3 layers with 4 image positions, in float64."""
    processor = copy.copy(processor)
    processor.image_processor = t.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**CLIP), text_config=t.LlamaConfig(**LLAMA),
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=4,
    )  # fmt: skip
    model = t.LlavaForConditionalGeneration(config)
    randomise(model)
    return mmedit.VisionLanguageModel(model.double(), processor, "tiny")


def by_hand(model: Any, processor: t.LlavaProcessor, inputs: dict[str, Tensor]) -> mmedit.VisionLanguageModel:
    """A model without a processor of its own, and the one prompt that it is given."""
    randomise(model)

    class ByHand(mmedit.VisionLanguageModel):
        def inputs(self, images: Any, prompt: Any = None) -> Any:
            whole = {"attention_mask": torch.ones_like(inputs["input_ids"]), **inputs}
            return {name: v.to(self.model.dtype) if v.is_floating_point() else v for name, v in whole.items()}

    return ByHand(model, processor.tokenizer, model.config.model_type)


@pytest.fixture
def blip(processor: t.LlavaProcessor) -> mmedit.VisionLanguageModel:
    """A BLIP-2 with an OPT, whose W_outs see their input flattened."""
    config = t.Blip2Config(
        vision_config=t.Blip2VisionConfig(**CLIP), qformer_config=t.Blip2QFormerConfig(**Q_FORMER), text_config=t.OPTConfig(**OPT),
        num_query_tokens=2, image_token_index=4,
    )  # fmt: skip
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    inputs = {"input_ids": torch.tensor([[4, 4, 7, 8, 9]]), "pixel_values": pixels}
    return by_hand(t.Blip2ForConditionalGeneration(config), processor, inputs)


@pytest.fixture
def experts(processor: t.LlavaProcessor) -> mmedit.VisionLanguageModel:
    """A Qwen3-VL with 2 of 4 experts for each position."""
    text = {
        **LLAMA,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "rope_parameters": MROPE,
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 8, "out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}  # fmt: skip
    config = t.Qwen3VLMoeConfig(
        text_config=text, vision_config=vision, image_token_id=4, vision_start_token_id=5, vision_end_token_id=6, video_token_id=7
    )  # fmt: skip
    ids = torch.tensor([[5, 4, 4, 4, 4, 6, 9]])
    pixels = torch.linspace(-1, 1, 16 * 3 * 2 * 64).sin().reshape(16, -1)
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == 4).long(), "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]])}  # fmt: skip
    return by_hand(t.Qwen3VLMoeForConditionalGeneration(config), processor, inputs)


def at_steps(*steps: int) -> Callable[[int, Generation], list[Occurrence]]:
    """Choose generated tokens by number, as if each were a word."""
    return lambda number, generation: [Occurrence("word", 0, step, generation.ids[step], 1) for step in steps]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def told(vlm: mmedit.VisionLanguageModel, sighting: Sighting) -> tuple[dict[str, Any], int]:
    """Inputs of prompt and caption put together by hand, and the position that predicts the word."""
    inputs = dict(vlm.inputs(sighting.image, sighting.prompt))
    start, index = inputs["input_ids"].shape[1], sighting.occurrence.index
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([sighting.generation.ids[:index]]).long()], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs, start - 1 + index


def through_outputs(vlm: mmedit.VisionLanguageModel, sighting: Sighting) -> dict[mmedit.Site, Tensor]:
    """o_i · (W_out[i] · ∂c/∂(W_out's output)): the same product by the chain rule, with every gradient kept."""
    inputs, at = told(vlm, sighting)
    kept: dict[mmedit.Site, tuple[Tensor, Tensor]] = {}

    def keep(site: mmedit.Site) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            output.retain_grad()
            kept[site] = args[0].detach(), output

        return hook

    modules = {site: vlm.architecture.w_out(site) for site in sighting.activations}
    handles = [w_out.module.register_forward_hook(keep(site)) for site, w_out in modules.items()]
    vlm.model(**inputs).logits[0, at, sighting.occurrence.token_id].backward()
    for handle in handles:
        handle.remove()
    vlm.model.zero_grad()
    image = inputs["input_ids"][0] == vlm.architecture.image_token_id
    products = {s: o.reshape(len(image), -1) * (y.grad.reshape(len(image), -1) @ modules[s].matrix.T) for s, (o, y) in kept.items()}  # type: ignore[union-attr]  # fmt: skip
    return {site: product[image].amax(0).float() for site, product in products.items()}


def close(one: dict[mmedit.Site, Tensor], other: dict[mmedit.Site, Tensor], rtol: float = 1e-4) -> bool:
    size = max(float(values.abs().max()) for values in other.values())
    return one.keys() == other.keys() and all(torch.allclose(one[s], other[s], rtol, rtol * size) for s in one)


# ---- attribution


@pytest.mark.parametrize("step", [0, 3])
def test_attribution_is_activation_times_the_slope_of_the_logit(blip: mmedit.VisionLanguageModel, step: int) -> None:
    """Against central differences of the logit, with one activation moved at one image position; in float64 throughout."""
    blip.model.double()
    (sighting,) = sightings(blip, picture(), at_steps(step))
    scores = attributions(blip, [sighting])[0]
    inputs, at = told(blip, sighting)

    def logit(site: mmedit.Site, place: int, unit: int, change: float) -> tuple[float, float]:
        seen: list[float] = []

        def move(module: nn.Module, args: Any) -> Any:
            o = args[0].clone()  # [positions, d_ffn]
            seen.append(float(o[place, unit]))
            o[place, unit] += change
            return (o,)

        handle = blip.architecture.w_out(site).module.register_forward_pre_hook(move)
        with torch.inference_mode():
            value = blip.model(**inputs).logits[0, at, sighting.occurrence.token_id]
        handle.remove()
        return float(value), seen[0]

    for site in (mmedit.Site(0), mmedit.Site(1)):
        best = scores[site].abs().topk(3).indices.tolist()
        for unit in (*best, 7):
            slopes = []
            for place in (0, 1):
                (up, o), (down, _) = (logit(site, place, unit, change) for change in (1e-5, -1e-5))
                slopes.append(o * (up - down) / 2e-5)
            assert float(scores[site][unit]) == pytest.approx(max(slopes), rel=1e-5, abs=1e-9)
        assert scores[site][best[-1]].abs() > 1e-3
    assert not scores[mmedit.Site(2)].any(), "what the last layer does at image positions is seen nowhere else"


def test_attribution_is_the_chain_rule_through_w_outs_output(vlm: mmedit.VisionLanguageModel, cat_file: Any) -> None:
    for sighting in sightings(vlm, cat_file, at_steps(0, 2)):
        assert close(attributions(vlm, [sighting])[0], through_outputs(vlm, sighting))


def test_attribution_where_w_outs_see_their_input_flattened(blip: mmedit.VisionLanguageModel) -> None:
    (sighting,) = sightings(blip, picture(), at_steps(2))
    assert close(attributions(blip, [sighting])[0], through_outputs(blip, sighting))


def test_attribution_of_experts_neurons(experts: mmedit.VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against experts that are run one position at a time, with the activations to be seen."""
    (sighting,) = sightings(experts, picture(), at_steps(0))
    got = attributions(experts, [sighting])[0]
    kept: list[tuple[mmedit.Site, Tensor]] = []
    for layer, module in enumerate({w_out.module: w_out for w_out in experts.architecture.w_outs.values()}):

        def one_by_one(x: Tensor, index: Tensor, weights: Tensor, m: Any = module, layer: int = layer) -> Tensor:
            rows = []
            for place, (state, chosen, shares) in enumerate(zip(x, index.tolist(), weights, strict=True)):
                row = torch.zeros_like(state)
                for expert, share in zip(chosen, shares, strict=True):
                    gate, up = (m.gate_up_proj[expert] @ state).chunk(2)
                    o = share * m.act_fn(gate) * up
                    o.retain_grad()
                    row = row + m.down_proj[expert] @ o
                    kept.extend([(mmedit.Site(layer, expert), o)] if 1 <= place <= 4 else [])
                rows.append(row)
            return torch.stack(rows)

        monkeypatch.setattr(module, "forward", one_by_one)
    experts.model(**experts.inputs(None)).logits[0, -1, sighting.occurrence.token_id].backward()
    expected = {site: torch.zeros_like(values) for site, values in got.items()}
    for site in expected:
        products = [(o * o.grad).detach() for at, o in kept if at == site]  # type: ignore[operator]
        elsewhere = [torch.zeros(24)] if len(products) < 4 else []  # positions that are routed past the expert
        expected[site] = torch.stack([*products, *elsewhere]).amax(0)
    assert close(got, expected, rtol=1e-3)
    assert sum(bool(values.any()) for values in got.values()) > 4


def test_attribution_is_the_same_for_either_activation(tiny: mmedit.VisionLanguageModel) -> None:
    """act(gate) · ∂c/∂act(gate) = o · ∂c/∂o, by hooks on the activation function."""
    (sighting,) = sightings(tiny, picture(), at_steps(1), activation="act_fn")
    inputs, at = told(tiny, sighting)
    kept: dict[mmedit.Site, Tensor] = {}

    def keep(module: nn.Module, args: Any, output: Tensor, site: mmedit.Site) -> None:
        if site not in kept:
            output.retain_grad()
            kept[site] = output

    for site, w_out in tiny.architecture.w_outs.items():
        assert w_out.act_fn is not None
        w_out.act_fn.register_forward_hook(lambda *args, site=site: keep(*args, site=site))
    tiny.model(**inputs).logits[0, at, sighting.occurrence.token_id].backward()
    image = inputs["input_ids"][0] == tiny.architecture.image_token_id
    expected = {site: (z * z.grad)[0, image].amax(0).detach().float() for site, z in kept.items()}  # type: ignore[operator]
    assert close(Attribution().scores(tiny, [sighting]), expected)


def test_with_a_linear_read_out_attribution_is_contribution(tiny: mmedit.VisionLanguageModel) -> None:
    """Without a final norm, and with the picture last, the last layer's W_out is all that lies between o and the logit."""
    tiny.processor.chat_template = "{{ messages[0]['content'][1]['text'] }}<image>"
    tiny.model.model.language_model.norm = nn.Identity()
    (sighting,) = sightings(tiny, picture(), at_steps(0), "a")
    last = mmedit.Site(2)
    contributions, attributed = (s.scores(tiny, [sighting])[last][0] for s in (Contribution(), Attribution()))
    assert torch.allclose(attributed, contributions.clamp(min=0), rtol=1e-5)  # 0 at the other image positions
    assert attributed.max() > 0.01


def test_words_of_a_caption_share_a_forward_pass(tiny: mmedit.VisionLanguageModel) -> None:
    passes: list[int] = []
    seen = sightings(tiny, [picture(0), picture(1)], at_steps(0, 2, 3))
    tiny.architecture.layers.children().__next__().register_forward_hook(lambda *args: passes.append(1))
    together = Attribution().scores(tiny, seen)
    assert len(passes) == 2
    for row, sighting in enumerate(seen):
        assert close(attributions(tiny, [sighting])[0], {site: values[row] for site, values in together.items()})


def test_layers_that_are_left_out_change_no_score(tiny: mmedit.VisionLanguageModel) -> None:
    whole, part = (sightings(tiny, picture(), at_steps(2), layers=layers) for layers in (None, [1]))
    for scorer in (Contribution(), Attribution(), as_scorer("random", 1)):
        scores = scorer.scores(tiny, part)
        assert close(scores, {mmedit.Site(1): scorer.scores(tiny, whole)[mmedit.Site(1)]})


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, nullcontext])
def test_attribution_under_any_gradient_mode(tiny: mmedit.VisionLanguageModel, mode: Any) -> None:
    seen = sightings(tiny, picture(), at_steps(1))
    expected = through_outputs(tiny, seen[0])
    with mode():
        assert close(attributions(tiny, seen)[0], expected)


def test_attribution_in_half_precision(trained: mmedit.VisionLanguageModel, cat_file: Any) -> None:
    half = mmedit.VisionLanguageModel(copy.deepcopy(trained.model).to(torch.bfloat16), trained.processor)
    (sighting,) = sightings(trained, cat_file, at_steps(1))
    whole, rounded = (torch.cat(list(attributions(v, [sighting])[0].values())) for v in (trained, half))
    assert torch.cosine_similarity(whole, rounded, 0) > 0.98


@pytest.mark.parametrize("asks", [True, False])
def test_the_graph_begins_at_the_first_of_the_sites(tiny: mmedit.VisionLanguageModel, asks: bool) -> None:
    """Nothing of the vision tower is kept, nor of the layers below, even if the embeddings ask for gradients."""
    if asks:
        tiny.model.enable_input_require_grads()
    seen = sightings(tiny, picture(), at_steps(1), layers=[1, 2])
    expected = through_outputs(tiny, seen[0])
    inside: list[bool] = []
    first, second = list(tiny.architecture.layers.children())[:2]
    for module in (tiny.model.model.vision_tower, first.mlp):  # type: ignore[union-attr]
        module.register_forward_hook(lambda m, a, out: inside.append(asks or getattr(out, "last_hidden_state", out).requires_grad))  # fmt: skip
    second.mlp.register_forward_hook(lambda m, a, out: inside.append(not out.requires_grad))  # type: ignore[union-attr]
    assert close(attributions(tiny, seen)[0], expected)
    assert inside == [asks, asks, False]


# ---- nothing is left behind


@contextmanager
def unchanged(vlm: mmedit.VisionLanguageModel) -> Iterator[None]:
    """The model's weights, flags, gradients, modes and hooks are the same at the end."""
    model: Any = vlm.model

    def state() -> list[Any]:
        flags = [
            (name, p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()
        ]
        return [flags, [module.training for module in model.modules()], hooks(model), torch.is_grad_enabled()]

    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.lm_head.requires_grad_(False)
    model.model.multi_modal_projector.train()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = state()
    yield
    after = state()
    assert before[1:] == after[1:]
    for (name, asked, gradient), (same, asks, left) in zip(before[0], after[0], strict=True):
        assert (name, asked) == (same, asks)
        assert (gradient is None) == (left is None) and (gradient is None or torch.equal(gradient, left))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_leaves_the_model_as_it_was(tiny: mmedit.VisionLanguageModel, name: str) -> None:
    tiny.caption(picture())  # transformers puts hooks of its own in at the first call
    with unchanged(tiny):
        scorer = as_scorer(name)
        scorer.scores(tiny, sightings(tiny, picture(), at_steps(1), at_prompt=scorer.at_prompt))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_attribution_that_fails_leaves_the_model_as_it_was(
    tiny: mmedit.VisionLanguageModel, error: type[BaseException], where: str
) -> None:
    seen = sightings(tiny, picture(), at_steps(1))
    watched: list[bool] = []

    def fail(*_: object) -> None:
        watched.extend(parameter.requires_grad for parameter in tiny.model.parameters())
        raise error

    def break_off(module: nn.Module, args: Any, output: Any) -> None:
        if where == "forward":
            fail()
        output.register_hook(fail)

    tiny.model.lm_head.register_forward_hook(break_off)
    with unchanged(tiny), pytest.raises(error):
        attributions(tiny, seen)
    assert watched and not any(watched)


# ---- the others


def test_activation_is_a_plain_forward_on_the_prompt_alone(vlm: mmedit.VisionLanguageModel, pictures: Any) -> None:
    images = [image for image, _, _ in pictures[:3]]
    options: dict[str, Any] = {"scorer": "activation", "layers": [0, 5], "k": 1024, "n_tokens": 0}
    together = mmedit.locate_nouns(vlm, images, batch_size=3, **options)
    for image, rankings in zip(images, together, strict=True):
        kept: dict[int, Tensor] = {}
        for site, w_out in vlm.architecture.w_outs.items():
            w_out.module.register_forward_pre_hook(
                lambda m, args, kept=kept, site=site: kept.update({site.layer: args[0][0, -1]})
            )
        with torch.inference_mode():
            vlm.model(**vlm.inputs(image))
        for w_out in vlm.architecture.w_outs.values():
            w_out.module._forward_pre_hooks.clear()
        assert rankings
        for ranking in rankings:
            assert len(ranking) == 1024
            assert all(r.score == pytest.approx(float(kept[r.neuron.layer][r.neuron.unit]), abs=1e-4) for r in ranking)


def test_random_neurons_follow_the_seed(vlm: mmedit.VisionLanguageModel, cat_file: Any, pictures: Any) -> None:
    one, same, other = (
        mmedit.locate_word(vlm, cat_file, "cat", scorer="random", seed=seed, k=50) for seed in (1, 1, 2)
    )
    assert one == same and one.scorer == "random, seed 1"
    assert len(set(one.neurons) & set(other.neurons)) < 10
    cats = [image for image, caption, _ in pictures if " cat " in caption and " cat " in vlm.caption(image)[0]]
    elsewhere = mmedit.locate_word(vlm, cats, "cat", scorer="random", seed=1, k=50)
    assert elsewhere.neurons == one.neurons, "a word has the same random neurons in every picture"
    (first, second) = mmedit.locate_nouns(vlm, cat_file, scorer="random", seed=1, k=50)[0]
    assert first.source != second.source and len(set(first.neurons) & set(second.neurons)) < 10


def test_random_neurons_are_of_all_layers_alike(tiny: mmedit.VisionLanguageModel) -> None:
    seen = sightings(tiny, picture(), at_steps(0))
    counts = [0, 0, 0]
    for seed in range(300):
        scores = as_scorer("random", seed).scores(tiny, seen)
        best = torch.stack([scores[mmedit.Site(layer)][0] for layer in range(3)])
        counts[int(best.argmax()) // best.shape[1]] += 1
    assert all(70 <= count <= 130 for count in counts)


# ---- the face


@pytest.mark.parametrize("name", SCORERS)
def test_a_batch_gives_the_rankings_of_single_pictures(
    vlm: mmedit.VisionLanguageModel, pictures: Any, name: str
) -> None:
    images = [image for image, _, _ in pictures[:4]]
    together = mmedit.locate_nouns(vlm, images, scorer=name, k=5, batch_size=3)
    for image, rankings in zip(images, together, strict=True):
        (alone,) = mmedit.locate_nouns(vlm, image, scorer=name, k=5)
        assert [r.neurons for r in alone] == [r.neurons for r in rankings] and alone
        assert [r.captions for r in alone] == [r.captions for r in rankings]


@pytest.mark.parametrize("name", SCORERS)
def test_several_pictures_are_averaged(vlm: mmedit.VisionLanguageModel, pictures: Any, name: str) -> None:
    images = [image for image, caption, _ in pictures if " tree " in caption and " tree " in vlm.caption(image)[0]][:2]
    one, two, both = (
        {r.neuron: (r.score, o) for r, o in zip(ranking, ranking.activations, strict=True)}
        for ranking in (
            mmedit.locate_word(vlm, i, "tree", scorer=name, layers=[1, 4], k=1024, n_tokens=0)
            for i in (images[0], images[1], images)
        )
    )
    assert len(both) == 1024
    for neuron, values in both.items():
        assert values == pytest.approx(tuple(sum(v) / 2 for v in zip(one[neuron], two[neuron], strict=True)), abs=1e-4)


def test_activations_are_those_of_the_word_whatever_the_scorer(vlm: mmedit.VisionLanguageModel, cat_file: Any) -> None:
    rankings = [
        mmedit.locate_word(vlm, cat_file, "cat", scorer=name, layers=[3], k=512, n_tokens=2) for name in SCORERS
    ]
    assert [ranking.scorer for ranking in rankings] == ["contribution", "activation", "attribution", "random, seed 0"]
    orders = {ranking.neurons for ranking in rankings}
    assert len(orders) == len(SCORERS)
    for ranking in rankings:
        o = dict(zip(ranking.neurons, ranking.activations, strict=True))
        assert o == dict(zip(rankings[0].neurons, rankings[0].activations, strict=True))
        assert all(len(tokens) == 2 for _, _, tokens in ranking.head(3))


def test_scorers_that_do_not_exist_or_cannot_be_used_are_refused(
    vlm: mmedit.VisionLanguageModel, cat_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="no such scorer") as caught:
        mmedit.locate_word(vlm, cat_file, "cat", scorer="gradient")
    assert "contribution, activation, attribution, random" in str(caught.value)
    for name in ("activation", "attribution", "random"):
        with pytest.raises(RequestError, match="final_norm='fold' is for contribution"):
            mmedit.locate_word(vlm, cat_file, "cat", scorer=name, final_norm="fold")
    with pytest.raises(RequestError, match="image positions") as caught:
        mmedit.locate_word(vlm, None, vlm.caption(None, "What is a dog?")[0], "What is a dog?", scorer="attribution")
    assert "without a picture" in str(caught.value)
    seen = sightings(vlm, cat_file, at_steps(0))
    with monkeypatch.context() as changed, pytest.raises(ModelError, match="through cross-attention"):
        changed.setattr(vlm.model.config, "is_encoder_decoder", True)
        attributions(vlm, seen)
    with monkeypatch.context() as changed, pytest.raises(ModelError, match="through cross-attention"):
        inputs = vlm.inputs
        changed.setattr(vlm, "inputs", lambda *given: {**inputs(*given), "cross_attention_mask": torch.ones(1)})
        attributions(vlm, seen)
    monkeypatch.setattr(vlm.architecture, "image_token_id", None)
    with pytest.raises(ModelError, match="image positions") as refused:
        mmedit.locate_nouns(vlm, cat_file, scorer="attribution")
    assert "model_type 'llava'" in str(refused.value) and refused.value.do


def test_a_decoder_with_other_positions_than_the_prompt_is_refused(tiny: mmedit.VisionLanguageModel) -> None:
    """As in models that put the image tokens in by themselves: the picture's positions would be read in the wrong place."""
    seen = sightings(tiny, picture(), at_steps(1))
    tiny.architecture.w_out(mmedit.Site(1)).module.register_forward_pre_hook(lambda m, args: (args[0][:, 1:],))
    with unchanged(tiny), pytest.raises(ModelError, match="one position of the decoder for each token") as caught:
        attributions(tiny, seen)
    places = len(told(tiny, seen[0])[0]["input_ids"][0])
    assert (caught.value.got, caught.value.expected) == (f"{places - 1} positions", f"{places}")


@pytest.mark.parametrize("k", [1, 7, 50, 143, 144, 999])
def test_the_best_are_those_of_a_full_sort_and_equals_stand_in_the_models_order(
    tiny: mmedit.VisionLanguageModel, k: int
) -> None:
    class Coarse(Scorer):
        name = "coarse"

        def scores(self, vlm: Any, seen: Any) -> dict[mmedit.Site, Tensor]:
            return {site: (8 * o)[None].round().clamp(-1, 1) for site, o in reversed(seen[0].activations.items())}

    seen = sightings(tiny, picture(), at_steps(1))
    every = {
        mmedit.Neuron(site.layer, unit): float(value)
        for site, values in Coarse().scores(tiny, seen).items()
        for unit, value in enumerate(values[0])
    }
    (ranking,) = rank(tiny, [seen], k, 0, Coarse())
    assert len(every) == 144 and len(set(every.values())) == 3
    assert [(r.neuron, r.score) for r in ranking] == sorted(every.items(), key=lambda item: (-item[1], item[0]))[:k]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_no_numbers_are_told_with_their_layer(tiny: mmedit.VisionLanguageModel, bad: float) -> None:
    class Broken(Scorer):
        name = "broken"

        def scores(self, vlm: Any, seen: Any) -> dict[mmedit.Site, Tensor]:
            scores = {site: o[None].clone() for site, o in seen[0].activations.items()}
            scores[mmedit.Site(1)][0, 3] = bad
            return scores

    with pytest.raises(ModelError, match="not a finite number") as caught:
        rank(tiny, [sightings(tiny, picture(), at_steps(1))], scorer=Broken())
    assert (caught.value.where, caught.value.got) == ("L1", str(bad))


# ---- editing


@pytest.mark.parametrize("name", SCORERS)
def test_the_editor_changes_the_best_neurons_of_its_scorer(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, name: str
) -> None:
    editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava").with_hparams(scorer=name, seed=4)
    patch = editor.execute(vlm, request_of_cat)
    best = mmedit.locate_word(vlm, request_of_cat.images, "cat", scorer=name, seed=4, k=5)
    assert patch.neurons == tuple(sorted(best.neurons)) == tuple(sorted(editor.locate(vlm, request_of_cat).neurons[:5]))
    assert (patch.hparams["scorer"], patch.hparams["seed"]) == (name, 4)
    assert patch.edits[0]["scores"] == [record.score for record in best]
    for neuron, o in zip(
        best.neurons, best.activations, strict=True
    ):  # Algorithm 1 with beta 0 moves each by lr · ε · |o| · ‖v0 − v1‖
        units, rows = patch.deltas[neuron.site]
        v0, v1 = (vlm.architecture.w_u[patch.edits[0][f"{role}_token_id"]] for role in ("source", "target"))
        assert torch.allclose(rows[units.tolist().index(neuron.unit)], 0.3 * o * (v1 - v0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["activation", "random"])
def test_weak_neurons_of_any_scorer_are_named(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, name: str
) -> None:
    with pytest.warns(UserWarning, match=r"beta=1e\+06 holds 5 of 5 neurons"):
        mmedit.editors.MMNeurons().with_hparams(scorer=name, beta=1e6).execute(vlm, request_of_cat)


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"scorer": "gradient"}, "scorer"), ({"seed": -1}, "seed"), ({"scorer": "attribution", "final_norm": "fold"}, "final_norm"),
     ({"scorers": "random"}, "hyperparameters"), ({"seed": "x"}, "seed")],
)  # fmt: skip
def test_hyperparameters_of_scorers_are_checked(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(HparamsError) as caught:
        mmedit.editors.MMNeurons().with_hparams(**changes)
    assert where in str(caught.value.where)


# ---- the command line


def test_locate_and_edit_by_a_scorer_on_the_command_line(
    trained: mmedit.VisionLanguageModel, cat_file: Path, tmp_path: Path
) -> None:
    def run(*arguments: object) -> Any:
        done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        if done.exception:
            raise done.exception
        return json.loads(done.stdout)

    for name in SCORERS:
        (found,) = run("locate", cat_file, "--source", "cat", "--k", 4, "--scorer", name, "--seed", 3)
        expected = mmedit.locate_word(trained, cat_file, "cat", scorer=name, seed=3, k=4)
        assert mmedit.NeuronRanking.from_dict(found) == expected
    edit = ("edit", cat_file, "--source", "cat", "--target", "dog", "-o", tmp_path / "p.safetensors")
    changed = run(*edit, "--scorer", "random", "--seed", 3)["neurons"]
    random = mmedit.locate_word(trained, cat_file, "cat", scorer="random", seed=3, k=5)
    assert sorted(changed) == sorted(map(str, random.neurons))
    assert mmedit.Patch.load(tmp_path / "p.safetensors").hparams["lr"] == 0.0003, "the rest is the model's own"
    with pytest.raises(RequestError, match="no such scorer"):
        run("locate", cat_file, "--scorer", "gradient")
    with pytest.raises(HparamsError):
        run(*edit, "--scorer", "gradient")


# ---- teacher forcing


def families() -> dict[str, Any]:
    text = {**LLAMA, "vocab_size": 80}
    siglip = t.SiglipVisionConfig(**CLIP, projection_dim=32)
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
    return {
        "paligemma": lambda: t.PaliGemmaConfig(
            text_config=t.GemmaConfig(**text, head_dim=8), vision_config=siglip, image_token_index=79, projection_dim=32
        ),
        "gemma3": lambda: t.Gemma3Config(
            text_config=t.Gemma3TextConfig(**text, head_dim=8), vision_config=siglip, image_token_index=79, mm_tokens_per_image=4
        ),
        "qwen2_vl": lambda: t.Qwen2VLConfig(
            text_config={**text, "rope_parameters": MROPE, "bos_token_id": 1, "eos_token_id": 2}, vision_config=tower,
            image_token_id=79, vision_start_token_id=77, vision_end_token_id=78, video_token_id=76,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("family", families())
def test_teacher_forcing_is_what_generation_sees(family: str) -> None:
    """Where inputs beside the ids say what each token is: a wrong one changes the logits silently."""
    model = t.AutoModelForImageTextToText.from_config(families()[family]()).eval()
    randomise(model)
    ids, image = torch.tensor([[77, 79, 79, 79, 79, 5, 6, 7]]), [[0, 1, 1, 1, 1, 0, 0, 0]]
    beside = {
        "paligemma": {"token_type_ids": [[0] * 8]},
        "gemma3": {"token_type_ids": image},
        "qwen2_vl": {"mm_token_type_ids": image, "image_grid_thw": [[1, 4, 4]]},
    }[family]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **{k: torch.tensor(v) for k, v in beside.items()},
    }
    inputs["pixel_values"] = torch.randn(*((16, 3 * 2 * 8 * 8) if family == "qwen2_vl" else (1, 3, 16, 16)))
    made = model.generate(
        **inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0,
        suppress_tokens=[79],
    )  # fmt: skip
    answer = made.sequences[:, 8:12]
    with torch.inference_mode():
        forced = with_answers(inputs, answer, torch.ones_like(answer), model.config.model_type)
        logits = model(**forced, use_cache=False).logits[0, -5:]
    assert torch.allclose(logits, torch.cat(made.logits), atol=1e-4)
    assert inputs["input_ids"].shape == (1, 8), "the inputs themselves stay as they are"


def test_base_scorers_need_what_they_ask_for(tiny: mmedit.VisionLanguageModel) -> None:
    seen = sightings(tiny, picture(), at_steps(0, 2), at_prompt=True)
    assert seen[0].at_prompt is seen[1].at_prompt, "kept once for all words of a caption"
    assert all(torch.equal(seen[0].at_prompt[site], o) for site, o in seen[0].activations.items())
    assert not sightings(tiny, picture(), at_steps(0))[0].at_prompt, "and only when asked for"
    assert Activation().options(tiny.architecture, batch_size=2) == {"batch_size": 2, "at_prompt": True}
    assert Contribution().options(tiny.architecture) == {"at_prompt": False}, "nothing more is recorded for the others"

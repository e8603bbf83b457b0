"""Mixtures of experts, from locating to a patch file, in LLaVA with a language model that has dense, routed and shared layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor, nn
from transformers import LlavaProcessor

import mmedit
from mmedit.concepts import Occurrence
from mmedit.errors import ModelError, PatchError, RequestError
from mmedit.locate import rank, rank_given
from mmedit.models.architecture import Architecture, resolve
from mmedit.models.experts import fused_experts
from mmedit.models.vlm import Generation
from mmedit.neuron import Neuron, Site
from mmedit.patches.bake import bake
from mmedit.patches.base import Base
from mmedit.patches.live import Stack
from mmedit.sightings import Sighting, sightings
from mmedit.testbed.checkpoint import build_llava

N_EXPERTS, D_EXPERT = 6, 24


def with_experts(processor: LlavaProcessor) -> Any:
    config = build_llava(processor).config
    words = config.text_config
    text = t.DeepseekV3Config(
        vocab_size=words.vocab_size, hidden_size=32, intermediate_size=48, moe_intermediate_size=D_EXPERT, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, n_shared_experts=2, n_routed_experts=N_EXPERTS, num_experts_per_tok=2, n_group=1,
        topk_group=1, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1,
        head_dim=4, pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = t.LlavaForConditionalGeneration(
        t.LlavaConfig(
            vision_config=config.vision_config,
            text_config=text,
            image_token_index=config.image_token_index,
            image_seq_length=config.image_seq_length,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
    return model


@pytest.fixture(scope="module")
def mixture(processor: LlavaProcessor) -> mmedit.VisionLanguageModel:
    return mmedit.VisionLanguageModel(with_experts(processor), processor, "mixture")


@pytest.fixture(scope="module")
def seen(mixture: mmedit.VisionLanguageModel, pictures: Any) -> list[Sighting]:
    """The second token of what the model says of two pictures."""

    def second(picture: int, generation: Generation) -> list[Occurrence]:
        return [Occurrence("word", 0, 1, generation.ids[1], 1)]

    return sightings(mixture, [picture for picture, _, _ in pictures[:2]], second)


def test_dense_shared_and_routed_neurons_are_ranked_together(
    mixture: mmedit.VisionLanguageModel, seen: list[Sighting]
) -> None:
    experts = [Site(layer, e) for layer in (1, 2) for e in ("shared", *range(N_EXPERTS))]
    assert [w_out.site for w_out in resolve(mixture).sites] == [Site(0), *experts]
    assert (mixture.architecture.d_ffn, mixture.architecture.w_out(Site(1, 3)).d_ffn) == (48, D_EXPERT)
    ranking = rank(mixture, [seen], k=10_000)[0]
    assert len(ranking) == 48 + 2 * (2 * D_EXPERT + N_EXPERTS * D_EXPERT) and ranking.scorer == "contribution"
    assert {type(neuron.expert) for neuron in ranking.neurons[:100]} == {type(None), str, int}
    again = mmedit.NeuronRanking.from_dict(ranking.head(5).to_dict())
    assert again.neurons == ranking.neurons[:5]


def test_of_every_layer_two_experts_act_and_the_others_are_silent(
    mixture: mmedit.VisionLanguageModel, seen: list[Sighting]
) -> None:
    for sighting in seen:
        for layer in (1, 2):
            routed = {e for e in range(N_EXPERTS) if sighting.activations[Site(layer, e)].any()}
            assert len(routed) == 2
            silent = sighting.activations[Site(layer, next(iter(set(range(N_EXPERTS)) - routed)))]
            assert silent.shape == (D_EXPERT,) and silent.untyped_storage().nbytes() <= 8
    one = next(neuron for neuron in rank(mixture, [seen])[0].neurons if isinstance(neuron.expert, int))
    assert rank_given(mixture, seen, [one])[0].neuron == one


def test_an_expert_that_does_not_exist_is_refused(mixture: mmedit.VisionLanguageModel) -> None:
    with pytest.raises(RequestError, match="no such feed-forward"):
        mixture.architecture.check(Neuron(1, 0, N_EXPERTS))
    with pytest.raises(RequestError, match=f"unit 0 to {D_EXPERT - 1}"):
        mixture.architecture.check(Neuron(1, D_EXPERT, 2))


def a_patch(vlm: mmedit.VisionLanguageModel, *neurons: Neuron) -> mmedit.Patch:
    sites = {neuron.site: torch.tensor([n.unit for n in neurons if n.site == neuron.site]) for neuron in neurons}
    generator = torch.Generator().manual_seed(3)
    deltas = {site: (units, torch.randn(len(units), 32, generator=generator)) for site, units in sites.items()}
    base = {site: Stack.of(vlm).base_rows(site, units) for site, units in sites.items()}
    return mmedit.Patch(deltas, base, Base.of(vlm))


def test_patches_of_experts_stack_merge_and_come_out_bit_for_bit(
    mixture: mmedit.VisionLanguageModel, tmp_path: Path
) -> None:
    """Experts share a parameter; a patch touches its own rows of it and nothing else."""
    a = a_patch(mixture, Neuron(1, 3, 2), Neuron(1, 5, 2), Neuron(1, 3, 4), Neuron(0, 7), Neuron(2, 40, "shared"))
    b = a_patch(mixture, Neuron(1, 3, 2), Neuron(2, 3, 4))
    a.save(tmp_path / "a.safetensors")
    assert mmedit.Patch.load(tmp_path / "a.safetensors").digest == a.digest
    weights = {name: tensor.clone() for name, tensor in mixture.model.state_dict().items()}
    with mmedit.stack(mixture, [a, b]):
        one = mixture.model.state_dict()
        fused = "model.language_model.layers.1.mlp.experts.down_proj"
        moved = (one[fused] != weights[fused]).any(1).nonzero().tolist()
        assert moved == [[2, 3], [2, 5], [4, 3]]  # expert, unit
        changed = {name for name, tensor in one.items() if not torch.equal(tensor, weights[name])}
        assert len(changed) == 4
        stacked = {name: tensor.clone() for name, tensor in one.items()}
    with mmedit.stack(mixture, [b, a]), mmedit.merge([a, b]).applied(mixture, 0.0):
        assert all(torch.equal(tensor, stacked[name]) for name, tensor in mixture.model.state_dict().items())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in mixture.model.state_dict().items())


def test_what_cannot_be_done_with_experts_is_said(
    mixture: mmedit.VisionLanguageModel, pictures: Any, tmp_path: Path
) -> None:
    patch = a_patch(mixture, Neuron(1, 3, 2))
    with pytest.raises(PatchError, match="expert"):
        patch.to_lora(tmp_path / "adapter", mixture)
    mixture.model.save_pretrained(tmp_path / "mixture")
    mixture.processor.save_pretrained(tmp_path / "mixture")
    with pytest.raises(ModelError, match=r"W_out of L1.E2 is not stored as one tensor"):
        bake(tmp_path / "mixture", [patch], tmp_path / "edited")
    with pytest.raises(ModelError, match="no activation function as a module"):
        mmedit.locate_word(mixture, pictures[0][0], "cat", activation="act_fn")


class Strange(nn.Module):
    """Experts of a layout that nobody knows."""

    def __init__(self, **own: Any) -> None:
        super().__init__()
        self.down_proj = nn.Parameter(torch.zeros(4, 32, 24))
        for name, value in own.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Normed(Strange):
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return hidden_states


@pytest.mark.parametrize("experts", [Strange(), Normed(has_post_expert_norm=True)])
def test_experts_of_an_unknown_layout_are_refused(experts: nn.Module, processor: LlavaProcessor) -> None:
    layer = nn.ModuleDict({"mlp": nn.ModuleDict({"experts": experts})})
    with pytest.raises(ModelError, match=r"neuron by neuron\n  where: mlp.experts\n  got: " + type(experts).__name__):
        list(fused_experts(layer))
    assert [path for path, _ in fused_experts(nn.ModuleDict({"experts": Normed()}))] == ["experts"]


def test_an_architecture_with_experts_is_worked_out_without_weights(processor: LlavaProcessor) -> None:
    with torch.device("meta"):
        architecture = Architecture(with_experts(processor))
    assert len(architecture.sites) == 1 + 2 * (1 + N_EXPERTS)
    with pytest.raises(ModelError, match=r"L1\.E2 is offloaded"):
        architecture.require_editable(Site(1, 2))

"""The resolver finds layers, W_out, final norm and W_U by facts, in model types of several kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmedit.errors import ModelError, RequestError
from mmedit.models.architecture import Architecture, WOut, architecture_of, bare_model
from mmedit.models.probe import residual_is_direct
from mmedit.neuron import Neuron, Site
from mmedit.trace import Trace

LLAMA = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
Q_FORMER = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "encoder_hidden_size": 32,
}
OPT = {
    "vocab_size": 80,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 64,
}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def llava(kind: str, text: Any) -> Any:
    config = getattr(t, f"{kind}Config")(
        vision_config=t.CLIPVisionConfig(**CLIP), text_config=text, image_token_index=79
    )
    return getattr(t, f"{kind}ForConditionalGeneration")(config)


def blip(kind: str, text: Any) -> Any:
    vision = getattr(t, f"{kind}VisionConfig")(**CLIP)
    q_former = getattr(t, f"{kind}QFormerConfig")(**Q_FORMER)
    config = getattr(t, f"{kind}Config")(
        vision_config=vision, qformer_config=q_former, text_config=text, num_query_tokens=2, image_token_index=79
    )
    return getattr(t, f"{kind}ForConditionalGeneration")(config)


MODELS = {
    "llava": lambda: llava("Llava", t.LlamaConfig(**LLAMA)),
    "llava, Mistral": lambda: llava("Llava", t.MistralConfig(**LLAMA)),
    "llava_next": lambda: llava("LlavaNext", t.LlamaConfig(**LLAMA)),
    "vipllava": lambda: llava("VipLlava", t.LlamaConfig(**LLAMA)),
    "blip-2, OPT": lambda: blip("Blip2", t.OPTConfig(**OPT)),
    "instructblip, OPT": lambda: blip("InstructBlip", t.OPTConfig(**OPT)),
    "instructblip, Llama": lambda: blip("InstructBlip", t.LlamaConfig(**LLAMA)),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request: Any) -> Any:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def test_every_text_layer_has_one_w_out_of_the_right_shape(model: Any) -> None:
    architecture = Architecture(model)
    assert sorted(architecture.w_outs) == [Site(0), Site(1), Site(2)]
    assert (architecture.n_layers, architecture.d_model, architecture.d_ffn) == (3, 32, 48)
    assert architecture.w_u.shape == (80, 32) and architecture.image_token_id == 79
    assert architecture.final_norm is not None
    names = dict(model.named_parameters())
    for w_out in architecture.w_outs.values():
        assert names[w_out.name] is w_out.weight and "vision" not in w_out.name
        assert w_out.matrix.shape == (48, 32)


def test_row_i_is_what_neuron_i_adds_to_the_layers_output(model: Any) -> None:
    """The probe that decides orientation: a change of row i shows in the output as o[i] times that change."""
    w_out = Architecture(model).w_out(Site(1))
    o, delta, unit = torch.randn(1, 48), torch.randn(32), torch.tensor([7])
    with torch.no_grad():
        before = w_out.module(o)
        kept = w_out.rows(unit)
        w_out.write(unit, kept + delta)
        after = w_out.module(o)
        w_out.write(unit, kept)
    assert torch.allclose(after - before, o[:, 7:8] * delta, atol=1e-5)
    assert torch.equal(w_out.rows(unit), kept)


def test_activations_are_recorded_at_the_last_position_while_generating(model: Any) -> None:
    """Also where W_out sees its input flattened, as in OPT."""
    architecture = Architecture(model)
    decoder = model.get_decoder()
    ids = torch.tensor([[3, 5, 7, 9], [4, 6, 8, 2]])
    seen = []
    handle = architecture.w_out(Site(2)).module.register_forward_pre_hook(
        lambda m, a: seen.append(a[0].reshape(2, -1, 48))
    )
    with torch.inference_mode(), Trace(architecture) as trace:
        decoder(input_ids=ids, use_cache=False)
    handle.remove()
    for row in range(2):
        assert torch.equal(trace.at(Site(2), 0, row), seen[0][row, -1])


def test_orientation_is_decided_by_class_not_by_shape() -> None:
    """A square matrix passes every test of shapes, so shape must not decide."""
    linear, conv = nn.Linear(6, 6, bias=False), Conv1D(6, 6)
    for module, expected in ((linear, linear.weight.T), (conv, conv.weight)):
        w_out = WOut(Site(0), module, "w", nn.Identity(), None)
        assert torch.equal(w_out.matrix, expected)
        assert torch.equal(w_out.rows(torch.tensor([2])), expected[2:3])


def test_an_architecture_is_worked_out_once(model: Any) -> None:
    assert architecture_of(model) is architecture_of(model)
    assert bare_model(model) is model


def test_wrong_sites_and_models_are_refused(model: Any) -> None:
    architecture = Architecture(model)
    with pytest.raises(RequestError, match="L0 to L2"):
        architecture.w_out(Site(3))
    with pytest.raises(RequestError, match="unit 0 to 47"):
        architecture.check(Neuron(0, 48))
    with pytest.raises(RequestError, match="layers from 0 to 2"):
        architecture.sites_of([0, 3])
    with pytest.raises(ModelError, match="not a transformers model"):
        Architecture(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="not a model"):
        architecture_of("llava")


def test_the_probe_tells_direct_models_from_those_with_a_norm_in_between(model: Any) -> None:
    assert set(residual_is_direct(model, Architecture(model)).values()) == {True}
    before = hooks(model)
    layers: Any = Architecture(model).layers
    with_norm = [getattr(layer, "mlp", layer) for layer in layers.children()]
    handle = with_norm[1].register_forward_hook(
        lambda m, a, out: out * 0.5 if isinstance(out, torch.Tensor) else (out[0] * 0.5, *out[1:])
    )
    assert residual_is_direct(model, Architecture(model)) == {Site(0): True, Site(1): False, Site(2): True}
    handle.remove()
    assert hooks(model) == before


def test_a_real_family_with_a_norm_in_between_is_found_out() -> None:
    """Gemma 3 normalises what its feed-forward writes."""
    text = {**LLAMA, "head_dim": 8, "sliding_window": 8}
    vision = t.SiglipVisionConfig(**CLIP)
    config = t.Gemma3Config(
        text_config=t.Gemma3TextConfig(**text), vision_config=vision, image_token_index=79, mm_tokens_per_image=4
    )
    gemma = t.Gemma3ForConditionalGeneration(config).eval()
    assert set(residual_is_direct(gemma, Architecture(gemma)).values()) == {False}

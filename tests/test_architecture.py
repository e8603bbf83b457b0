"""The resolver finds layers, W_out, final norm and W_U by facts, in model types of several kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmedit.errors import ModelError, RequestError
from mmedit.models.architecture import Architecture, WOut, architecture_of, bare_model, resolve
from mmedit.models.probe import probe
from mmedit.models.readout import Head, LinearNorm, Route, linear_norm
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
        w_out = WOut(Site(0), module, "w")
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


def probed(model: Any) -> Architecture:
    architecture = Architecture(model)
    probe(model, architecture)
    return architecture


def test_the_probe_finds_the_way_of_every_layer(model: Any) -> None:
    """A layer whose feed-forward output is halved, one whose output is doubled, one that squashes it, and all put back."""
    plain, before = probed(model), hooks(model)
    assert set(plain.routes.values()) == {Route()} and plain.head == Head()
    assert plain.exact(plain.w_outs, folded=False) and plain.exact(plain.w_outs, folded=True)
    layers: Any = list(Architecture(model).layers.children())

    def change(module: nn.Module, how: Any) -> Any:
        return module.register_forward_hook(
            lambda m, a, out: (how(out[0]), *out[1:]) if isinstance(out, tuple) else how(out)
        )

    handle = change(layers[2], lambda out: 2 * out)
    doubled = probed(model)
    assert doubled.routes == dict.fromkeys([Site(0), Site(1), Site(2)], Route(pytest.approx(2.0)))
    assert not doubled.exact([Site(0)], folded=False) and doubled.exact([Site(0)], folded=True)
    handle.remove()
    handle = change(layers[1], torch.tanh)
    assert probed(model).routes == {Site(0): None, Site(1): None, Site(2): Route()}
    handle.remove()
    assert hooks(model) == before and not any("forward" in module.__dict__ for module in model.modules())


def test_a_half_that_stands_behind_one_w_out_is_seen_at_that_one_alone() -> None:
    model = MODELS["llava"]().eval()
    layers: Any = list(Architecture(model).layers.children())
    layers[1].mlp.register_forward_hook(lambda m, a, out: 0.5 * out)
    assert probed(model).routes == {Site(0): Route(), Site(1): Route(pytest.approx(0.5)), Site(2): Route()}


def test_what_was_not_tried_is_unchecked_and_a_strange_head_is_not_exact(model: Any) -> None:
    architecture = Architecture(model)
    assert architecture.exact([Site(0)], folded=False) is None
    handle = architecture.unembedding.register_forward_hook(lambda m, a, out: out * out)
    strange = probed(model)
    handle.remove()
    assert strange.head is None and strange.exact([Site(0)], folded=False) and not strange.exact([Site(0)], folded=True)


def test_half_precision_does_not_hide_the_way() -> None:
    model = MODELS["llava"]().to(torch.bfloat16).eval()
    architecture = probed(model)
    assert set(architecture.routes.values()) == {Route()} and architecture.head == Head()


def test_a_norm_behind_w_out_is_found_in_a_real_family() -> None:
    """Gemma 3 normalises what its feed-forward writes."""
    text = {**LLAMA, "head_dim": 8, "sliding_window": 8}
    vision = t.SiglipVisionConfig(**CLIP)
    config = t.Gemma3Config(
        text_config=t.Gemma3TextConfig(**text), vision_config=vision, image_token_index=79, mm_tokens_per_image=4
    )
    gemma = t.Gemma3ForConditionalGeneration(config).eval()
    architecture = probed(gemma)
    layers: Any = list(architecture.layers.children())
    assert architecture.routes == {Site(i): Route(norm=layers[i].post_feedforward_layernorm) for i in range(3)}
    assert architecture.norms_after([Site(1)]) == [architecture.final_norm, layers[1].post_feedforward_layernorm]


@pytest.mark.parametrize("norm", [nn.LayerNorm(32), nn.RMSNorm(32), t.models.gemma3.modeling_gemma3.Gemma3RMSNorm(32)])
def test_a_norm_is_the_linear_map_that_it_is_with_its_scale_held(norm: Any) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn(32))
    x, direction = 3 * torch.randn(32) + 1, torch.randn(32)
    linear = linear_norm(norm, x)
    assert linear.centred is isinstance(norm, nn.LayerNorm)
    with torch.no_grad():
        moved = norm(x) - norm(torch.zeros(32))
    assert torch.allclose(linear.back(direction) @ x, direction @ moved, rtol=1e-4)
    assert torch.allclose(LinearNorm(linear.gain, linear.centred).back(torch.zeros(32)), torch.zeros(32))


def test_a_softcap_flattens_the_slope() -> None:
    head, u = Head(0.5, 3.0), torch.tensor([-4.0, 0.0, 4.0, 40.0], requires_grad=True)
    (slope,) = torch.autograd.grad(head.logits(u).sum(), u)
    assert torch.allclose(head.slope(u.detach()), slope) and float(slope[3]) < 1e-4


def test_w_outs_that_do_not_write_to_the_residual_stream_are_refused() -> None:
    model = MODELS["llava"]()
    model.lm_head = nn.Linear(24, 80, bias=False)
    with pytest.raises(ModelError, match="does not add to the residual stream"):
        Architecture(model)


def test_two_w_outs_that_cannot_be_told_apart_are_refused() -> None:
    model = MODELS["llava"]()
    list(Architecture(model).layers.children())[1].more = nn.ModuleDict({"fc2": nn.Linear(48, 32)})  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"several W_outs.*\n.*\n.*layers.1.mlp.down_proj and .*layers.1.more.fc2"):
        Architecture(model)


def test_the_picture_token_is_found_by_any_of_its_names() -> None:
    config = t.Phi4MultimodalConfig(
        vision_config={"image_token_id": 77, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4},
        audio_config={"num_blocks": 1, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "ext_pw_out_channel": 32, "nemo_conv_channels": 32},
        pad_token_id=0, **LLAMA,
    )  # fmt: skip
    with torch.device("meta"):
        assert resolve(t.Phi4MultimodalForCausalLM(config)).image_token_id == 77

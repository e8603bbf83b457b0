"""The vision tower: a ViT whose last layer, class token included, goes through one more norm to the abstractor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from mmedit.models.mplug_owl2.config import MPLUGOwl2Config, VisionSettings


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, config: MPLUGOwl2Config) -> Tensor:
    """Attention that sees everything, by the implementation that the model was told to use.

    Args:
        module: whose attention it is.
        query: `[n, heads, length, d_head]`; key and value may have another length.
        key: see query.
        value: see query.
        config: of the model.

    Returns:
        `[n, length, heads * d_head]`.
    """
    attention: Any = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
    mixed: Tensor = attention(module, query, key, value, None, scaling=query.shape[-1] ** -0.5)[0]
    return mixed.flatten(2)


class VisionEmbeddings(nn.Module):
    """Patches and a class token with learned positions."""

    def __init__(self, sizes: VisionSettings) -> None:
        super().__init__()
        width, patch = sizes.hidden_size, sizes.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = nn.Conv2d(sizes.num_channels, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Parameter(torch.zeros(1, sizes.n_positions, width))
        self.pre_layernorm = nn.LayerNorm(width, eps=sizes.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.cls_token.expand(len(patches), -1, -1).to(patches.dtype), patches], dim=1)
        embedded: Tensor = self.pre_layernorm(hidden + self.position_embedding)
        return embedded


class VisionAttention(nn.Module):
    """Self-attention; the rows of the fused projection are ordered (heads, 3, d_head)."""

    num_key_value_groups = 1
    is_causal = False

    def __init__(self, config: MPLUGOwl2Config) -> None:
        super().__init__()
        self.config, self.n_heads = config, config.vision.num_attention_heads
        width = config.vision.hidden_size
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        fused = self.query_key_value(hidden).unflatten(-1, (self.n_heads, 3, -1))
        query, key, value = fused.permute(3, 0, 2, 1, 4)
        out: Tensor = self.dense(attend(self, query, key, value, self.config))
        return out


class VisionMLP(nn.Module):
    """Two linear maps and an activation."""

    def __init__(self, sizes: VisionSettings) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[sizes.hidden_act]
        self.fc1 = nn.Linear(sizes.hidden_size, sizes.intermediate_size)
        self.fc2 = nn.Linear(sizes.intermediate_size, sizes.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation_fn(self.fc1(hidden)))
        return out


class VisionLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: MPLUGOwl2Config) -> None:
        super().__init__()
        sizes = config.vision
        self.self_attn = VisionAttention(config)
        self.input_layernorm = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)
        self.mlp = VisionMLP(sizes)
        self.post_attention_layernorm = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden))
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class VisionEncoder(nn.Module):
    """The layers one after another."""

    def __init__(self, config: MPLUGOwl2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.vision.num_hidden_layers))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class VisionModel(nn.Module):
    """Pixels `[n, 3, size, size]` to `[n, 1 + patches, width]`: the class token, then the patches row by row."""

    def __init__(self, config: MPLUGOwl2Config) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config.vision)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.vision.hidden_size, eps=config.vision.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        pixel_values = pixel_values.to(self.embeddings.patch_embed.weight.dtype)
        out: Tensor = self.post_layernorm(self.encoder(self.embeddings(pixel_values)))
        return out

"""The visual abstractor: learned queries look at the vision tower's output and become the image tokens of the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mmedit.models.mplug_owl2.config import AbstractorSettings, MPLUGOwl2Config
from mmedit.models.mplug_owl2.vision import attend


def sin_cos(positions: Tensor, width: int) -> Tensor:
    """Fixed position embeddings: `[n]` positions to `[n, width]`, sines in the first half, cosines in the second."""
    half = torch.arange(width // 2, dtype=torch.float32, device=positions.device)
    angles = positions.float()[:, None] / 10000 ** (half / (width / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def grid_positions(side: int, width: int, device: torch.device) -> Tensor:
    """Embeddings of a class token (zeros) and a square grid row by row, `[1 + side², width]`: the column's half first."""
    cell = torch.arange(side * side, device=device)
    grid = torch.cat([sin_cos(cell % side, width // 2), sin_cos(cell // side, width // 2)], dim=-1)
    return torch.cat([grid.new_zeros(1, width), grid])


class AbstractorAttention(nn.Module):
    """Cross-attention; positions enter queries and keys but not values."""

    num_key_value_groups = 1
    is_causal = False

    def __init__(self, config: MPLUGOwl2Config) -> None:
        super().__init__()
        sizes = config.abstractor
        self.config, self.n_heads = config, sizes.num_attention_heads
        self.query = nn.Linear(sizes.hidden_size, sizes.hidden_size)
        self.key = nn.Linear(sizes.encoder_hidden_size, sizes.hidden_size)
        self.value = nn.Linear(sizes.encoder_hidden_size, sizes.hidden_size)

    def forward(self, x: Tensor, seen: Tensor, x_positions: Tensor, seen_positions: Tensor) -> Tensor:
        parts = self.query(x + x_positions), self.key(seen + seen_positions), self.value(seen)
        query, key, value = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)
        return attend(self, query, key, value, self.config)


class AbstractorMLP(nn.Module):
    """A gated feed-forward with a norm before its last map."""

    def __init__(self, sizes: AbstractorSettings) -> None:
        super().__init__()
        width, inner = sizes.hidden_size, sizes.intermediate_size
        self.w1, self.w3 = nn.Linear(width, inner), nn.Linear(width, inner)
        self.w2 = nn.Linear(inner, width)
        self.ffn_ln = nn.LayerNorm(inner, eps=sizes.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(self.ffn_ln(silu(self.w1(x)) * self.w3(x)))
        return out


class AbstractorOutput(nn.Module):
    """What follows the attention: its output projection and the feed-forward, each added."""

    def __init__(self, sizes: AbstractorSettings) -> None:
        super().__init__()
        self.out_proj = nn.Linear(sizes.hidden_size, sizes.hidden_size)
        self.norm2 = nn.LayerNorm(sizes.hidden_size)  # torch's own epsilon: the configured one is for ffn_ln alone
        self.mlp = AbstractorMLP(sizes)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out_proj(attended)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class AbstractorCrossAttention(nn.Module):
    """The queries look at themselves and at the image; what is added to is the normed queries."""

    def __init__(self, config: MPLUGOwl2Config) -> None:
        super().__init__()
        sizes = config.abstractor
        self.attention = AbstractorAttention(config)
        self.output = AbstractorOutput(sizes)
        self.norm1 = nn.LayerNorm(sizes.hidden_size)
        self.normk = nn.LayerNorm(sizes.encoder_hidden_size)

    def forward(self, x: Tensor, image: Tensor, x_positions: Tensor, image_positions: Tensor) -> Tensor:
        x = self.norm1(x)
        seen = torch.cat([x, self.normk(image)], dim=1)
        seen_positions = torch.cat([x_positions, image_positions])
        out: Tensor = self.output(x, self.attention(x, seen, x_positions, seen_positions))
        return out


class AbstractorLayer(nn.Module):
    """One layer under its published name."""

    def __init__(self, config: MPLUGOwl2Config) -> None:
        super().__init__()
        self.crossattention = AbstractorCrossAttention(config)

    def forward(self, x: Tensor, image: Tensor, x_positions: Tensor, image_positions: Tensor) -> Tensor:
        out: Tensor = self.crossattention(x, image, x_positions, image_positions)
        return out


class AbstractorEncoder(nn.Module):
    """The layers one after another; the positions are the same in each and are computed, not stored."""

    def __init__(self, config: MPLUGOwl2Config) -> None:
        super().__init__()
        self.sizes = config.abstractor
        self.layers = nn.ModuleList(AbstractorLayer(config) for _ in range(self.sizes.num_hidden_layers))

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        queries = torch.arange(self.sizes.num_learnable_queries, device=x.device)
        x_positions = sin_cos(queries, self.sizes.hidden_size).to(x.dtype)
        image_positions = grid_positions(self.sizes.grid_size, self.sizes.encoder_hidden_size, x.device).to(x.dtype)
        for layer in self.layers:
            x = layer(x, image, x_positions, image_positions)
        return x


class VisualAbstractor(nn.Module):
    """The vision tower's output `[n, 1 + patches, width]` to image tokens `[n, queries + 1, d_model]`."""

    def __init__(self, config: MPLUGOwl2Config) -> None:
        super().__init__()
        sizes = config.abstractor
        self.query_embeds = nn.Parameter(torch.zeros(1, sizes.num_learnable_queries, sizes.hidden_size))
        self.encoder = AbstractorEncoder(config)
        self.visual_fc = nn.Linear(sizes.hidden_size, config.hidden_size)
        self.vit_eos = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(self, image: Tensor) -> Tensor:
        x = self.encoder(self.query_embeds.expand(len(image), -1, -1), image)
        tokens = self.visual_fc(x)
        return torch.cat([tokens, self.vit_eos.expand(len(image), -1, -1).to(tokens.dtype)], dim=1)

"""The modality-adaptive Llama layers: norms, keys and values have one set of weights for text and one for images.

The feed-forward has one set for both, so its neurons are those of an ordinary Llama.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from mmedit.models.mplug_owl2.config import MPLUGOwl2Config


class Multiway(nn.Module):
    """Two modules of one kind: the first for text positions, the second for image positions.

    Args:
        make: makes one of them.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.multiway = nn.ModuleList([make(), make()])

    def forward(self, hidden: Tensor, is_image: Tensor | None) -> Tensor:
        """Choose for each position.

        Args:
            hidden: `[n, length, width]`.
            is_image: bool `[n, length]`; None where all is text, which saves the second module's work.
        """
        text: Tensor = self.multiway[0](hidden)
        return text if is_image is None else torch.where(is_image[..., None], self.multiway[1](hidden), text)


class MPLUGOwl2Attention(LlamaAttention):  # type: ignore[misc]
    """Llama's attention, except that keys and values depend on the modality."""

    def __init__(self, config: MPLUGOwl2Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width = config.num_key_value_heads * self.head_dim
        for name in ("k_proj", "v_proj"):
            setattr(self, name, Multiway(lambda: nn.Linear(config.hidden_size, width, bias=config.attention_bias)))

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask: Tensor | None = None,
        past_key_values: Any = None, modality_indicators: Tensor | None = None, **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        key = self.k_proj(hidden_states, modality_indicators).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states, modality_indicators).view(heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention: Any = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attention(
            self, query, key, value, attention_mask, scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0, **kwargs,
        )  # fmt: skip
        return self.o_proj(mixed.flatten(2)), weights


class MPLUGOwl2DecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Llama's layer with a norm for each modality; `modality_indicators` says which positions are image positions."""

    def __init__(self, config: MPLUGOwl2Config, layer_idx: int) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)  # type: ignore[no-any-return]

        self.self_attn = MPLUGOwl2Attention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm, self.post_attention_layernorm = Multiway(norm), Multiway(norm)

    def forward(self, hidden_states: Tensor, modality_indicators: Tensor | None = None, **kwargs: Any) -> Tensor:
        normed = self.input_layernorm(hidden_states, modality_indicators)
        hidden_states = hidden_states + self.self_attn(normed, modality_indicators=modality_indicators, **kwargs)[0]
        normed = self.post_attention_layernorm(hidden_states, modality_indicators)
        out: Tensor = hidden_states + self.mlp(normed)
        return out

"""Tiny models with random weights, of every image-text-to-text type of transformers, made from its default configuration.

Every size in a configuration is replaced by a small one; a row of `rows.py` says what else a type needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import transformers
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

Config = transformers.PretrainedConfig
CLASSES = {"phi4_multimodal": "Phi4MultimodalForCausalLM", **MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
"""Model types that this transformers has, with their classes; Phi-4 stands only among the multimodal ones."""

VOCAB = 120
_NAMES_BY_SIZE = {
    1: "n_group topk_group",
    2: """num_hidden_layers encoder_layers decoder_layers layers num_layers num_decoder_layers depth n_layers num_experts_per_tok moe_topk moe_k
        index_n_heads linear_num_key_heads num_query_tokens n_groups resampler_depth resampler_n_latents""",
    4: """num_attention_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads num_key_value_heads swa_num_attention_heads
        swa_num_key_value_heads linear_num_value_heads linear_num_heads mamba_num_heads n_routed_experts num_experts num_local_experts moe_num_experts
        qk_rope_head_dim d_rel latent_query_num resampler_n_heads""",
    8: """head_dim d_kv qk_nope_head_dim v_head_dim index_head_dim linear_key_head_dim linear_value_head_dim swa_head_dim linear_head_dim
        hidden_size_per_layer_input mamba_head_dim ssm_state_size sliding_window sliding_window_size pos_emb_height pos_emb_width resampler_head_dim""",
    12: "qk_head_dim",
    14: "patch_size",
    16: "q_lora_rank kv_lora_rank index_topk rel_extent num_position_embeddings",
    24: """moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size share_expert_dim shared_experts_intermediate_size
        moe_shared_expert_intermediate_size""",
    28: "image_size",
    32: """hidden_size d_model embed_dim n_embd projection_dim projector_hidden_size out_hidden_size text_hidden_size word_embed_proj_dim
        encoder_hidden_size adapter_in_dim adapter_out_dim adapter_input_size output_dim output_channels patch_embed_hidden_size merged_hidden_size
        base_channels vision_hidden_size downsample_hidden_size projection_hidden_size projection_hidden_dim mm_embed_dim output_proj_dims
        vision_output_dim projector_input_dim projector_output_dim""",
    48: """intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff mlp_dim dense_intermediate_size intermediate_size_mlp
        projection_intermediate_size alignment_intermediate_size""",
    64: "num_embeddings codebook_size position_embedding_size max_2d_position_embeddings max_vit_seq_len max_image_size mm_posemb_size",
    VOCAB: "vocab_size vocab_size_per_layer_input",
    256: "max_position_embeddings",
}  # fmt: skip
SIZES = {name: size for size, names in _NAMES_BY_SIZE.items() for name in names.split()}
MAY_END = ("eos_token_id", "forced_eos_token_id")  # None, so that an answer has the length that is asked for


def tiny_config(model_type: str, changes: dict[str, Any]) -> Any:
    """The default configuration of a type with small sizes, token ids inside the vocabulary, and changes."""
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**_shrunk(config_class(), changes, {}))


def _shrunk(config: Any, changes: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in vars(config).items():
        number = isinstance(value, int) and not isinstance(value, bool)
        if name in changes and not (isinstance(value, Config) and isinstance(changes[name], dict)):
            continue
        if isinstance(value, Config):
            inner = changes.get(name, {})
            other = "model_type" in inner  # a part of another kind is given whole
            small[name] = inner if other else _shrunk(value, inner, ids) | {"model_type": value.model_type}
        elif name in SIZES and number and value:
            small[name] = SIZES[name]
        elif name in MAY_END:
            small[name] = None
        elif name.endswith(("token_id", "token_index")) and number and value >= VOCAB:
            kind = name.removesuffix("_id").removesuffix("_index")
            small[name] = ids.setdefault(kind, VOCAB - 1 - len(ids))
    return small | {name: value for name, value in changes.items() if name not in small}


@contextmanager
def _no_timm() -> Iterator[None]:
    """Towers that are timm's are left out: these models then run on text alone."""
    original = AutoModel.from_config.__func__

    def from_config(cls: Any, config: Any, **options: Any) -> Any:
        timm = "timm" in type(config).__name__.lower() or config.model_type == "gemma3n_vision"
        return torch.nn.Identity() if timm else original(cls, config, **options)

    with mock.patch.object(AutoModel, "from_config", classmethod(from_config)):
        yield


def tiny_model(model_type: str, changes: dict[str, Any]) -> Any:
    """A model with weights that are random, norms included, and large enough for pictures and words to matter."""
    config = tiny_config(model_type, changes)
    torch.manual_seed(0)
    with _no_timm():
        model = getattr(transformers, CLASSES[model_type])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
            elif "A_log" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model

"""One row for each image-text-to-text model type: its bucket, configuration, pictures, and what mmedit makes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def plain(size: int = 28, name: str = "pixel_values", **more: Any) -> Callable[[Any], Inputs]:
    """One picture as it is."""
    return lambda model: {name: noise(1, 3, size, size), **more}


def tiles(n: int = 1, size: int = 28, **more: Any) -> Callable[[Any], Inputs]:
    """One picture cut into tiles."""
    return lambda model: {"pixel_values": noise(1, n, 3, size, size), **more}


def patches(model: Any) -> Inputs:
    """Four times four patches, flattened, as of Qwen2-VL."""
    vision = model.config.vision_config
    patch, frames = vision.patch_size, getattr(vision, "temporal_patch_size", 1)
    return {"pixel_values": noise(16, 3 * frames * patch * patch), "image_grid_thw": torch.tensor([[1, 4, 4]])}


def squares(model: Any) -> Inputs:
    """The same with the patches as squares."""
    return {"pixel_values": noise(16, 3, 14, 14), "image_grid_thw": torch.tensor([[1, 4, 4]])}


def minicpm(model: Any) -> Inputs:
    return {"pixel_values": noise(1, 3, 14, 14 * 16), "target_sizes": torch.tensor([[4, 4]])}


def molmo(model: Any) -> Inputs:
    pooling = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    return {
        "pixel_values": noise(2, 4, 588),
        "image_token_pooling": pooling,
        "image_grids": torch.tensor([[1, 1, 1, 1]]),
    }


def phi(model: Any) -> Inputs:
    whole = torch.ones(1, 2, 2, 2, dtype=torch.long)
    return {
        "image_pixel_values": noise(1, 2, 3, 28, 28),
        "image_sizes": torch.tensor([[28, 28]]),
        "image_attention_mask": whole,
    }


def grid(n: int) -> Tensor:
    """Coordinates of n times n patches."""
    return torch.cartesian_prod(torch.arange(n), torch.arange(n))[None]


def flattened() -> Tensor:
    """Patches as of Pix2Struct: row, column, pixels."""
    return torch.cat([1 + torch.cartesian_prod(torch.arange(2), torch.arange(2))[None].float(), noise(1, 4, 588)], 2)


def no_picture(model: Any) -> Inputs:
    return {}


@dataclass(frozen=True)
class Row:
    """What a model type is like.

    Args:
        name: config.model_type.
        bucket: of the list in the notes: A one W_out a layer; B with a norm or scale behind it; C pictures not in the
            prompt; D experts; E not of this kind.
        picture: makes the inputs that a picture becomes.
        n: how many positions of the prompt the picture takes; None where there is no prompt.
        config: what the tiny configuration needs beside small sizes.
        sites: the sites that are to be found; `L1.E` stands for four experts.
        way: how what W_outs write reaches the final norm: `direct`, through a `norm`, times a `scale`, or `other`.
        refused: what the error says, where the type cannot be edited.
        since: from which version of transformers on the row is true; before, the type is built or run in other ways.
        uncached: from which version on transformers generates the same without a cache.
    """

    name: str
    bucket: str
    picture: Callable[[Any], Inputs] = no_picture
    n: int | None = 0
    config: dict[str, Any] = field(default_factory=dict)
    sites: str = "L0 L1"
    way: str = "direct"
    refused: str = ""
    since: str = "5.0"
    uncached: str = "5.0"

    @property
    def all_sites(self) -> list[str]:
        """The sites, every expert by itself."""
        return [
            name
            for site in self.sites.split()
            for name in ([f"{site}{i}" for i in range(4)] if site.endswith("E") else [site])
        ]

    def inputs(self, model: Any) -> Inputs:
        """A prompt with a picture in it, as the type's processor would make it."""
        if self.n is None:
            return self.picture(model)
        names, takes = (
            ("image_token_id", "image_token_index", "video_token_index"),
            inspect.signature(model.forward).parameters,
        )
        parts = (model.config, getattr(model.config, "vision_config", None))
        image = next(
            (found for part in parts for name in names if (found := getattr(part, name, None)) is not None), None
        )
        ids = torch.tensor([[20, 21, *[image] * self.n, 22, 23, 24]])
        types = {
            key: (ids == image).long()
            for key in ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids")
            if key in takes and self.n
        }
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types, **self.picture(model)}


LINEAR_TOO = {"text_config": {"layer_types": ["linear_attention", "full_attention"]}}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14}
CHAMELEON = {"<image>": 119, **{f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 40 + i for i in range(64)}}
EMU = {"<image>": 119, "<|extra_200|>": 118, **{f"<|visual token {i:06d}|>": 40 + i for i in range(64)}}

ROWS = [
    Row("aya_vision", "A", plain(), 1),
    Row("blip-2", "A", plain(), 2, {"image_token_index": 119}),
    Row("chameleon", "A", plain(32), 4, {"vocabulary_map": CHAMELEON}),
    Row("cohere2_vision", "A", plain(), 1),
    Row("cosmos3_edge", "A", patches, 4, {"text_config": MROPE}, uncached="5.20"),
    Row("cosmos3_omni", "A", patches, 4),
    Row("deepseek_vl", "A", plain(), 4),
    Row("deepseek_vl_hybrid", "A", plain(high_res_pixel_values=noise(1, 3, 112, 112)), 4, {"high_res_vision_config": {"global_attn_indexes": [0, 1], "image_size": 112}}),
    Row("emu3", "A", plain(32, image_sizes=torch.tensor([[32, 32]])), 20, {"vocabulary_map": EMU, "vq_config": {"hidden_size": 128}}),
    Row("fast_vlm", "A"),
    Row("fuyu", "A", lambda model: {"pixel_values": noise(1, 4, 588)}, 4, since="5.22"),
    Row("got_ocr2", "A", plain(), 1),
    Row("hunyuan_vl", "A", patches, 8, {"text_config": {"head_dim": 8, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0, "alpha": 2.0, "mrope_section": [1, 1, 1, 1]}}}),
    Row("idefics2", "A", tiles(), 2),
    Row("idefics3", "A", tiles(), 1),
    Row("instructblip", "A", plain(qformer_input_ids=torch.tensor([[5, 6]])), 2, {"image_token_index": 119}),
    Row("internvl", "A", plain(), 1),
    Row("janus", "A", plain(), 4),
    Row("lfm2_vl", "A", lambda model: {"pixel_values": noise(1, 16, 588), "spatial_shapes": torch.tensor([[4, 4]]), "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long)}, 4, {"text_config": {"layer_types": ["conv", "full_attention"]}}),
    Row("lighton_ocr", "A", plain(image_sizes=torch.tensor([[28, 28]])), 1),
    Row("llava", "A", plain(), 4),
    Row("llava_next", "A", tiles(2, image_sizes=torch.tensor([[28, 28]])), 10, {"image_grid_pinpoints": [[28, 28]]}),
    Row("llava_next_video", "A", tiles(2, image_sizes=torch.tensor([[28, 28]])), 10, {"image_grid_pinpoints": [[28, 28]]}),
    Row("llava_onevision", "A", tiles(2, image_sizes=torch.tensor([[28, 28]])), 10, {"image_grid_pinpoints": [[28, 28]]}),
    Row("minicpm_ocr", "A", minicpm, 4, {"image_token_id": 119, **LINEAR_TOO}),
    Row("minicpmv4_6", "A", minicpm, 1, {"image_token_id": 119, **LINEAR_TOO}),
    Row("minicpmv4_7", "A", minicpm, 1, {"image_token_id": 119, **LINEAR_TOO}),
    Row("mistral3", "A", plain(56, image_sizes=torch.tensor([[56, 56]])), 4, {"vision_config": {"image_size": 56}}),
    Row("molmo2", "A", molmo, 2, {"image_patch_id": 114, "vision_config": {"image_size": [28, 28], "num_position_embeddings": 4}, "adapter_config": {"vision_feature_layer": [1, 0]}}),
    Row("ovis2", "A", plain(), 4),
    Row("paddleocr_vl", "A", squares, 4, {"text_config": MROPE}),
    Row("paligemma", "A", plain(), 4, uncached="5.18"),
    Row("perception_lm", "A", config={"vision_config": {"model_type": "timm_wrapper", "model_args": {"embed_dim": 32}}}),
    Row("phi4_multimodal", "A", phi, 5, {"vision_config": {"crop_size": 28}}),
    Row("pp_chart2table", "A", plain(), 1),
    Row("qianfan_ocr", "A", plain(), 1),
    Row("qwen2_5_omni_thinker", "A", patches, 4, {"vision_start_token_id": 100, "text_config": MROPE}),
    Row("qwen2_5_vl", "A", patches, 4, {"text_config": MROPE}),
    Row("qwen2_vl", "A", patches, 4, {"text_config": MROPE}),
    Row("qwen3_5", "A", patches, 4, LINEAR_TOO),
    Row("qwen3_vl", "A", patches, 4),
    Row("smolvlm", "A", tiles(), 1),
    Row("video_llama_3", "A", lambda model: patches(model) | {"image_merge_sizes": torch.tensor([2])}, 4),
    Row("video_llava", "A", plain(name="pixel_values_images"), 4),
    Row("vipllava", "A", plain(), 4, {"vision_feature_layers": [-1, -2]}),
    Row("cohere_compass", "B", patches, 4, {"text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}}, since="5.22"),
    Row("exaone4_5", "B", patches, 4, way="norm"),
    Row("gemma3", "B", plain(), 4, {"mm_tokens_per_image": 4}, way="norm"),
    Row("gemma3n", "B", config={"text_config": {"num_kv_shared_layers": 0}}, way="other"),
    Row("gemma4", "B", lambda model: {"pixel_values": noise(1, 16, 588), "image_position_ids": grid(4)}, 4, {"vision_config": {**SMALL, "head_dim": 8, "num_key_value_heads": 4, "pooling_kernel_size": 2, "position_embedding_size": 16}}, way="norm"),
    Row("gemma4_unified", "B", lambda model: {"pixel_values": noise(1, 4, 28 * 28 * 3), "image_position_ids": grid(2)}, 4, {"vision_config": {"patch_size": 14, "pooling_kernel_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32}}, way="norm"),
    Row("glm46v", "B", patches, 4, {"text_config": MROPE}, way="norm"),
    Row("glm4v", "B", patches, 4, {"text_config": MROPE}, way="norm"),
    Row("glm_ocr", "B", patches, 4, {"text_config": MROPE}, way="norm"),
    Row("glmga", "B", patches, 4, {"text_config": MROPE}, way="norm"),
    Row("granite4_vision", "B", tiles(2, image_sizes=torch.tensor([[28, 28]])), 3, {"image_grid_pinpoints": [[28, 28]], "deepstack_layer_map": [[-1, 0]], "downsample_rate": "1/2", "vision_config": {"hidden_size": 64}, "spatial_target_layers": [0, 1, 0, 1]}, since="5.20"),
    Row("granite_docling", "B", tiles(size=56, pixel_attention_mask=torch.ones(1, 1, dtype=torch.bool)), 1, {"vision_config": {"image_size": 56}}, way="scale"),
    Row("hyperclovax_vision_v2", "B", patches, 4, way="norm"),
    Row("lfm3_vl", "B", patches, 4, {"text_config": {"layer_types": ["conv", "full_attention"]}}, way="norm"),
    Row("muse_glimmer", "B", lambda model: {"pixel_values": noise(16, 1176), "image_grid_thw": torch.tensor([[1, 4, 4]])}, 4, {"out_hidden_size": 128}, way="norm"),
    Row("shieldgemma2", "B", plain(), 4, {"mm_tokens_per_image": 4}, way="norm"),
    Row("blip", "C", plain(), way="other"),
    Row("florence2", "C", plain(), 2, {"vision_config": {"embed_dim": [32] * 4, "depths": [1] * 4, "num_heads": [4] * 4, "num_groups": [4] * 4}}, way="other"),
    Row("git", "C", plain(), way="other", uncached="5.18"),
    Row("idefics", "C", tiles(image_attention_mask=torch.ones(1, 5, 1, dtype=torch.long))),
    Row("instructblipvideo", "C", lambda model: {"pixel_values": noise(1, 4, 3, 28, 28), "qformer_input_ids": torch.tensor([[5, 6]])}, 8, {"video_token_index": 119}),
    Row("kosmos-2", "C", plain(image_embeds_position_mask=torch.tensor([[0, 1, 1, 0, 0]])), 0, {"latent_query_num": 2}),
    Row("kosmos-2.5", "C", lambda model: {"flattened_patches": flattened(), "image_embeds_position_mask": torch.tensor([[0, 1, 1, 0, 0]])}, 0, {"latent_query_num": 2, "vision_config": {"patch_embed_hidden_size": 588}}),
    Row("mllama", "C", lambda model: {"pixel_values": noise(1, 1, 4, 3, 28, 28), "aspect_ratio_ids": torch.tensor([[1]]), "aspect_ratio_mask": torch.ones(1, 1, 4, dtype=torch.long), "cross_attention_mask": torch.ones(1, 6, 1, 4, dtype=torch.long)}, 1, {"text_config": {"cross_attention_layers": [1]}, "vision_config": {"num_global_layers": 1, "intermediate_layers_indices": [0, 1], "vision_output_dim": 96}}, way="scale", since="5.20"),
    Row("pix2struct", "C", lambda model: {"flattened_patches": flattened()}, None, {"vision_config": {"patch_embed_hidden_size": 588}}),
    Row("t5gemma2", "C", plain(), 4, {"encoder": {"mm_tokens_per_image": 4}}, way="norm"),
    Row("udop", "C", plain(bbox=torch.zeros(1, 5, 4)), 0, {"decoder_start_token_id": 1}),
    Row("vision-encoder-decoder", "C", plain(), None, {"decoder_start_token_id": 1, "decoder": {"is_decoder": True, "add_cross_attention": True}}, way="other", since="5.20"),
    Row("aria", "D", plain(), 4, {"projector_patch_to_query_dict": {4: 4}}, sites="L0.S L0.E L1.S L1.E", since="5.18"),
    Row("deepseek_ocr2", "D", plain(224), 145, {"text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2}, "vision_config": {"sam_config": {"global_attn_indexes": [0, 1], "downsample_channels": [32, 32], "image_size": 224}}}, sites="L0 L1.S L1.E"),
    Row("diffusion_gemma", "D", no_picture, 0, {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}}, refused="it writes many words at once, so none is predicted at a position", since="5.20"),
    Row("dots3_note", "D", patches, 4, {"vision_config": {"mlp_layer_types": ["dense", "sparse"], "num_local_experts": 4}, "text_config": {"head_dim": 12}}, sites="L0 L1.S L1.E"),
    Row("ernie4_5_vl_moe", "D", patches, 4, {"text_config": {"moe_intermediate_size": [24, 16], "rope_parameters": {**MROPE["rope_parameters"], "mrope_section": [1, 1, 2]}}}, sites="L0 L1.S L1.E", uncached="none yet"),
    Row("glm4v_moe", "D", patches, 4, {"text_config": {"rope_parameters": {**MROPE["rope_parameters"], "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}}}, sites="L0 L1.S L1.E"),
    Row("glm5_next", "D", patches, 4, {"text_config": {"qk_rope_head_dim": 0, "mlp_layer_types": ["dense", "sparse"], "layer_types": ["linear_attention", "indexed_attention"]}}, sites="L0 L1.S L1.E", way="other", since="5.18"),
    Row("inkling2", "D", lambda model: {"pixel_values": noise(4, 28, 28, 3), "image_grid_thw": torch.tensor([[1, 2, 2]])}, 4, sites="L0.E L1.E", way="other"),
    Row("inkling_mm_model", "D", lambda model: {"pixel_values": noise(2, 2, 14, 14, 3)}, 2, {"vision_config": {"num_hidden_layers": 4}}, sites="L0.S L0.E L1.S L1.E", way="other"),
    Row("kimi_k25", "D", squares, 4, {"text_config": {"head_dim": 4, "first_k_dense_replace": 1}}, sites="L0 L1.S L1.E"),
    Row("llama4", "D", plain(), 1, {"vision_config": {"intermediate_size": 128}}, sites="L0.S L0.E L1.S L1.E"),
    Row("minimax_m3_vl", "D", patches, 4, sites="L0.S L0.E L1.S L1.E", way="scale", since="5.20"),
    Row("mistral4", "D", sites="L0.S L0.E L1.S L1.E", since="5.12"),
    Row("mistral_large4", "D", plain(56, image_sizes=torch.tensor([[56, 56]])), 4, {"vision_config": {"image_size": 56}}, sites="L0 L1.S L1.E"),
    Row("muse_spark", "D", no_picture, 0, {"audio_config": {"patch_sizes": [2, 2], "hidden_sizes": [8, 8], "depths": [1, 1]}}, refused="its experts write through a norm of their own, in a narrower space"),
    Row("nemotron_h_omni", "D", lambda model: {"pixel_values": noise(16, 588), "image_grid_hw": torch.tensor([[4, 4]])}, 4, {"image_token_id": 119, "vision_config": {"video_temporal_patch_size": 2}}, sites="L1.S L1.E L3"),
    Row("qwen3_5_moe", "D", patches, 4, LINEAR_TOO, sites="L0.S L0.E L1.S L1.E"),
    Row("qwen3_omni_moe_thinker", "D", patches, 4, {"vision_start_token_id": 100, "text_config": MROPE}, sites="L0.E L1.E"),
    Row("qwen3_vl_moe", "D", patches, 4, sites="L0.E L1.E"),
    Row("qwen4_exp", "D", patches, 4, {"text_config": {"layer_types": ["linear_attention", "indexed_attention"], "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16, "indexer_compress_ratio": 4}}, sites="L0.S L0.E L1.S L1.E", way="other", since="5.18"),
    Row("step3p7", "D", plain(), 1, {"text_config": {"sliding_window": 8, "mlp_layer_types": ["dense", "sparse"]}}, sites="L0 L1.S L1.E"),
    Row("unlimited_ocr", "D", plain(112), 7, {"text_config": {"mlp_layer_types": ["dense", "sparse"]}, "vision_config": {"sam_config": {"global_attn_indexes": [0, 1], "downsample_channels": [32, 32], "image_size": 112}}}, sites="L0 L1.S L1.E"),
    Row("evolla", "E", refused="it reads proteins, not pictures", since="5.6"),
    Row("pi0", "E", refused="it writes a robot's movements, not words"),
    Row("pp_formulanet", "E", plain(), None, {"decoder_hidden_size": 32, "vision_config": {"post_conv_in_channels": 32, "post_conv_mid_channels": 32, "post_conv_out_channels": 32, "decoder_hidden_size": 32}}),
]  # fmt: skip

"""mPLUG-Owl2 (Ye et al., CVPR 2024, arXiv 2311.04257): vision tower, visual abstractor, modality-adaptive Llama.

Classes and weights have the published names, so that a published checkpoint loads and saves without renaming.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaModel, LlamaPreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils.generic import can_return_tuple

from mmedit.errors import RequestError
from mmedit.models.mplug_owl2.abstractor import VisualAbstractor
from mmedit.models.mplug_owl2.config import MPLUGOwl2Config
from mmedit.models.mplug_owl2.decoder import MPLUGOwl2Attention, MPLUGOwl2DecoderLayer
from mmedit.models.mplug_owl2.vision import VisionEmbeddings, VisionModel


class MPLUGOwl2PreTrainedModel(LlamaPreTrainedModel):  # type: ignore[misc]
    """What the parts with weights have in common."""

    config_class = MPLUGOwl2Config
    input_modalities = ("image", "text")
    _supports_flash_attn = _supports_flex_attn = False  # eager and sdpa are what is tested
    _can_compile_fullgraph = False  # counting the image tokens of a batch breaks the graph
    _no_split_modules = ["MPLUGOwl2DecoderLayer", "VisionLayer", "VisualAbstractor"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": MPLUGOwl2DecoderLayer, "attentions": MPLUGOwl2Attention}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"attention\.[qk]_pos_embed$"]  # noqa: RUF012  # computed here

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.normal_(module.position_embedding, std=self.config.initializer_range)
        elif isinstance(module, VisualAbstractor):
            init.normal_(module.query_embeds, std=self.config.initializer_range)
            init.normal_(module.vit_eos, std=self.config.initializer_range)


class MPLUGOwl2LlamaModel(MPLUGOwl2PreTrainedModel, LlamaModel):  # type: ignore[misc]
    """The model without its unembedding; all but the embedding of images is LlamaModel's own forward."""

    def __init__(self, config: MPLUGOwl2Config) -> None:
        super(LlamaModel, self).__init__(config)  # past LlamaModel's own, which would make layers of another kind
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(MPLUGOwl2DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.vision_model = VisionModel(config)
        self.visual_abstractor = VisualAbstractor(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """What the decoder sees of pictures.

        Args:
            pixel_values: `[n, 3, size, size]`.
            **kwargs: ignored; transformers passes what other families need.

        Returns:
            `last_hidden_state`, the vision tower's output `[n, 1 + patches, width]`, and `pooler_output`, the image tokens
            `[n, queries + 1, d_model]`.
        """
        seen = self.vision_model(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=seen, pooler_output=self.visual_abstractor(seen))

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values: Any = None, inputs_embeds: Tensor | None = None,
        modality_indicators: Tensor | None = None, use_cache: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Run the decoder on text and image tokens.

        Args:
            input_ids: `[n, length]`, with `image_seq_length` times `image_token_index` for each picture.
            pixel_values: `[pictures, 3, size, size]`, in the order of their places in the batch read row by row.
            attention_mask: as for Llama.
            position_ids: as for Llama.
            past_key_values: as for Llama.
            inputs_embeds: instead of `input_ids`, `[n, length, d_model]`, pictures already in it.
            modality_indicators: `[n, length]`, true or 1 where `inputs_embeds` is an image token.
            use_cache: as for Llama.
            **kwargs: as for Llama.

        Raises:
            RequestError: if places and pictures do not match, or `inputs_embeds` comes without `modality_indicators`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise RequestError("the model takes either input_ids or inputs_embeds", got="both or neither")
        if input_ids is not None:
            inputs_embeds, modality_indicators = self._embed(input_ids, pixel_values)
        elif modality_indicators is None:
            raise RequestError(
                "which of the inputs_embeds are image tokens is not known", expected="modality_indicators beside them",
                do="pass torch.zeros(n, length) if all is text",
            )  # fmt: skip
        return super().forward(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            modality_indicators=None if modality_indicators is None else modality_indicators.bool(), use_cache=use_cache, **kwargs,
        )  # fmt: skip

    def _embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Embeddings `[n, length, d_model]` with the pictures in their places, and where these are, None if nowhere."""
        is_image = input_ids == self.config.image_token_index
        embeds = self.embed_tokens(input_ids.masked_fill(is_image, 0))
        n_places = int(is_image.sum())
        n_tokens = 0 if pixel_values is None else len(pixel_values) * self.config.image_seq_length
        if n_places != n_tokens:
            raise RequestError(
                "image tokens and pictures do not match",
                got=f"{n_places} image tokens, {0 if pixel_values is None else len(pixel_values)} pictures",
                expected=f"{self.config.image_seq_length} tokens of id {self.config.image_token_index} for each picture",
                do="make the inputs with the processor",
            )  # fmt: skip
        if pixel_values is None:
            return embeds, None
        tokens = self.get_image_features(pixel_values).pooler_output.to(embeds)
        is_image = is_image.to(embeds.device)  # a model may be spread over several
        return embeds.masked_scatter(is_image[..., None], tokens), is_image


class MPLUGOwl2LlamaForCausalLM(MPLUGOwl2PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """mPLUG-Owl2 with its unembedding.

    Args:
        config: its configuration.

    Example:
        >>> size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> visual = {"visual_model": size | {"image_size": 28}, "visual_abstractor": size | {"encoder_hidden_size": 16, "grid_size": 2}}
        >>> model = MPLUGOwl2LlamaForCausalLM(MPLUGOwl2Config(vocab_size=40, visual_config=visual, **size))
        >>> ids = torch.tensor([[1, 5, *[-200] * 65, 7]])
        >>> model(input_ids=ids, pixel_values=torch.zeros(1, 3, 28, 28)).logits.shape
        torch.Size([1, 68, 40])
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MPLUGOwl2Config) -> None:
        super().__init__(config)
        self.model = MPLUGOwl2LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """What the decoder sees of pictures; see `MPLUGOwl2LlamaModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values: Any = None, inputs_embeds: Tensor | None = None,
        modality_indicators: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0, **kwargs: Any,
    ) -> CausalLMOutputWithPast:  # fmt: skip
        """Logits, and a loss where there are labels.

        Args:
            input_ids: this and all others as for `MPLUGOwl2LlamaModel.forward`, except
            labels: `[n, length]`, the ids themselves (they are shifted here); image tokens and -100 are not learned.
            logits_to_keep: how many last positions get logits, all for 0; or which.
        """
        outputs = self.model(
            input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, modality_indicators=modality_indicators,
            use_cache=use_cache, **kwargs,
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            labels = labels.masked_fill(labels == self.config.image_token_index, -100)
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states, attentions=outputs.attentions,
        )  # fmt: skip

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **model_kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:  # fmt: skip
        """Repeat every row for beam search; the pictures of a row stay together, which transformers would pull apart."""
        pixel_values = model_kwargs.pop("pixel_values", None)
        expanded, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if pixel_values is not None and input_ids is not None:
            places = (input_ids == self.config.image_token_index).sum(1)
            per_row = pixel_values.split((places // self.config.image_seq_length).tolist())
            pixel_values = torch.cat([part for pictures in per_row for part in [pictures] * expand_size])
        return expanded, model_kwargs if pixel_values is None else model_kwargs | {"pixel_values": pixel_values}

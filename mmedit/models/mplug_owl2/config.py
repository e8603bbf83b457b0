"""The configuration of mPLUG-Owl2, as its published config.json has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from transformers import LlamaConfig

IMAGE_TOKEN_INDEX = -200
"""What stands for an image token in `input_ids`; the vocabulary has no entry for it."""

T = TypeVar("T")


@dataclass(frozen=True)
class VisionSettings:
    """Sizes of the vision tower; the defaults are the published ones."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 448
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-6

    @property
    def n_positions(self) -> int:
        """The patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True)
class AbstractorSettings:
    """Sizes of the visual abstractor; the defaults are the published ones."""

    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    num_learnable_queries: int = 64
    encoder_hidden_size: int = 1024
    grid_size: int = 32
    layer_norm_eps: float = 1e-6


class MPLUGOwl2Config(LlamaConfig):  # type: ignore[misc]
    """A Llama's configuration with that of the two visual parts.

    Args:
        visual_config: `visual_model` and `visual_abstractor`, each a dict of sizes. It stays the dict that the checkpoint
            has; what it holds besides sizes is kept and not read.
        image_token_index: the id that stands for one image token.
        **kwargs: of `LlamaConfig`.

    Example:
        >>> config = MPLUGOwl2Config()
        >>> config.image_seq_length, config.vision.n_positions, config.image_token_id
        (65, 1025, -200)
    """

    model_type = "mplug_owl2"
    attribute_map = {"image_token_id": "image_token_index"}  # noqa: RUF012
    base_model_tp_plan = None  # Llama's has no place for two key projections

    def __init__(
        self, visual_config: dict[str, Any] | None = None, image_token_index: int = IMAGE_TOKEN_INDEX, **kwargs: Any
    ) -> None:
        self.visual_config = visual_config or {}
        self.image_token_index = image_token_index
        super().__init__(**kwargs)

    @property
    def vision(self) -> VisionSettings:
        """Sizes of the vision tower."""
        return _known(VisionSettings, self.visual_config.get("visual_model", {}))

    @property
    def abstractor(self) -> AbstractorSettings:
        """Sizes of the visual abstractor."""
        return _known(AbstractorSettings, self.visual_config.get("visual_abstractor", {}))

    @property
    def image_seq_length(self) -> int:
        """Tokens per image: one for each query, and one that ends the image."""
        return self.abstractor.num_learnable_queries + 1


def _known(kind: type[T], values: Mapping[str, Any]) -> T:
    """The fields of a dataclass from a dict that holds others as well; None means the default."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in names and value is not None})

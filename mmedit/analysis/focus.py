"""Where in the picture do neurons look? Their activations at the image positions, laid over the picture (Pan et al., Tables 1 and 8).

A second pass over the prompt keeps only the chosen neurons at the image positions. Where the objects' regions are known, as
in IconWorld, how much of the activation falls on the object is a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mmedit.errors import ModelError
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Neuron, Site
from mmedit.requests import Prompt

KS = (1, 10, 50, 100, 500, 1000)
PERCENTILE = 95.0
QUERIES = ("qformer_config", "num_query_tokens", "resampler_config", "perceiver_config")
Map = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OnObject:
    """How much of a heatmap falls on an object.

    Args:
        hit: whether its greatest value does (the pointing game).
        mass: the share of its values, from its least upwards, that does.
        area: the share of the picture that the object takes: what a map that is the same everywhere has as mass.
    """

    hit: bool
    mass: float
    area: float


def image_activations(
    vlm: VisionLanguageModel, image: Any, neurons: Sequence[Neuron], prompt: str | Prompt | None = None
) -> Map:
    """The activations of neurons at the image tokens, where these are a grid over the picture.

    Args:
        vlm: the model.
        image: one picture.
        neurons: which neurons.
        prompt: as for `vlm.caption`.

    Returns:
        `[n_neurons, height, width]` in units of image tokens.

    Raises:
        ModelError: if the model's image tokens are not a grid over the picture.
        RequestError: if the model has no such neuron.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture = next(benchmark_pictures(1))[0]
        >>> image_activations(mmedit.load("iconworld-llava"), picture, [Neuron(2, 7), Neuron(5, 1)]).shape
        (2, 8, 8)
    """
    architecture = vlm.architecture
    for neuron in neurons:
        architecture.check(neuron)
    inputs = vlm.inputs(image, prompt)
    token = architecture.image_token_id
    at_image = (inputs["input_ids"] == token).flatten() if token is not None else torch.zeros(1, dtype=torch.bool)
    height, width = grid(vlm, inputs, int(at_image.sum()))
    units: dict[Site, list[int]] = {}
    for neuron in neurons:
        units.setdefault(neuron.site, []).append(neuron.unit)
    found: dict[Site, Tensor] = {}
    modules: dict[Any, list[Site]] = {}
    for site in units:
        modules.setdefault(architecture.w_out(site).module, []).append(site)

    def pick(hidden: Tensor) -> Tensor:
        return hidden.detach().flatten(0, -2)[at_image.to(hidden.device)]

    def keep(sites: list[Site], record: Any) -> None:
        for site in sites:
            w_out = architecture.w_out(site)
            rows = [w_out.recorded(record, row)[units[site]] for row in range(height * width)]
            found[site] = torch.stack(rows, 1).double().cpu()  # [units, positions]

    handles = []
    try:
        for sites in modules.values():
            handles.append(architecture.w_out(sites[0]).capture(pick, lambda record, sites=sites: keep(sites, record)))  # type: ignore[misc]
        with torch.inference_mode():
            vlm.model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    ordered = torch.stack([found[neuron.site][units[neuron.site].index(neuron.unit)] for neuron in neurons])
    return ordered.view(len(neurons), height, width).numpy()


def grid(vlm: VisionLanguageModel, inputs: Any, n_tokens: int) -> tuple[int, int]:
    """How a picture's tokens lie over it: rows and columns.

    Raises:
        ModelError: if they do not: queries or a resampler stand in between, or the picture is cut into several crops.
    """
    config = vlm.model.config
    vision = getattr(config, "vision_config", None)
    queries = any(getattr(config, name, None) is not None for name in QUERIES) or "abstractor" in str(config).lower()
    if n_tokens and not queries:
        if "image_grid_thw" in inputs:
            _, height, width = inputs["image_grid_thw"][0].tolist()
            merge = int(getattr(vision, "spatial_merge_size", 1))
            if height * width == n_tokens * merge**2:
                return height // merge, width // merge
        size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        if isinstance(size, int) and isinstance(patch, int):
            side = round(n_tokens**0.5)
            if side**2 == n_tokens and (size // patch) % side == 0:  # several patches may share a token
                return side, side
    raise ModelError(
        "this model's image tokens are not a grid over the picture", where=vlm.architecture.model_type,
        got=f"{n_tokens} image tokens" + (", made by queries" if queries else ""),
        expected="one token for each square of the picture",
        do="use a model such as LLaVA-1.5; the other analyses work with this one",
    )  # fmt: skip


def heatmap(activations: Map, width: int, height: int) -> Map:
    """The mean of some neurons' activations as a map over the picture, bilinear between the centres of the tokens.

    Args:
        activations: `[n_neurons, rows, columns]`.
        width: of the picture, in pixels.
        height: of the picture, in pixels.

    Returns:
        `[height, width]`.
    """
    mean = Image.fromarray(activations.mean(0).astype(np.float32))
    return np.asarray(mean.resize((width, height), Image.Resampling.BILINEAR), np.float64)


def overlay(image: Image.Image, values: Map) -> Image.Image:
    """The picture under its heatmap, dark blue for the least and yellow for the greatest value."""
    import matplotlib

    span = values.max() - values.min()
    shade = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    colours = Image.fromarray((matplotlib.colormaps["viridis"](shade)[..., :3] * 255).astype(np.uint8))
    return Image.blend(image.convert("RGB"), colours, 0.55)


def mask(values: Map, percentile: float = PERCENTILE) -> npt.NDArray[np.bool_]:
    """Where the heatmap is above its 95th percentile, the paper's binary mask."""
    return np.asarray(values > np.percentile(values, percentile))


def masked(image: Image.Image, kept: npt.NDArray[np.bool_]) -> Image.Image:
    """The picture, dark outside the mask."""
    pixels = np.asarray(image.convert("RGB"), float)
    return Image.fromarray((pixels * np.where(kept, 1.0, 0.22)[..., None]).astype(np.uint8))


def on_object(values: Map, region: npt.NDArray[np.bool_]) -> OnObject:
    """How much of a heatmap falls on an object.

    Args:
        values: the heatmap, `[height, width]`.
        region: where the object is, `[height, width]`.

    Example:
        >>> where = np.array([[True, False], [False, False]])
        >>> on_object(np.array([[3.0, 1.0], [1.0, 1.0]]), where)
        OnObject(hit=True, mass=1.0, area=0.25)
    """
    above = values - values.min()
    share = above[region].sum() / above.sum() if above.sum() > 0 else region.mean()
    hit = bool(region.flat[int(values.argmax())])
    return OnObject(hit, float(share), float(region.mean()))

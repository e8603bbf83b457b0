"""Where a loaded model keeps its decoder layers, W_out, final norm, W_U and image positions.

One resolver works from facts that hold for the decoder-style image-text-to-text models of transformers; a family that
needs more is a row of `FAMILIES`. Nothing outside `mmedit/models` knows a module path or a weight's orientation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn

from mmedit.errors import ModelError, RequestError
from mmedit.models.editable import Walk, obstacle
from mmedit.models.readout import Head, Route
from mmedit.models.search import find_final_norm, find_layers, find_unembedding, find_w_outs
from mmedit.models.vocabulary import n_words
from mmedit.models.w_out import WOut as WOut
from mmedit.neuron import Neuron, Site


@dataclass(frozen=True)
class Family:
    """What must be known of a model type beside what the search finds."""

    layers: str | None = None
    """Path of the decoder layers; searched for when None."""
    unembedding: str | None = None
    """Path of the unembedding; searched for when None."""
    picture_mask: str | None = None
    """With which keyword a layer is told what positions are a picture's, if its experts see only the others."""
    text_model: str | None = None
    """Path of the part that reads text alone, if the whole cannot do without a picture."""
    batch_axis: int = 0
    """Which axis of a layer's input counts pictures; positions follow."""
    refused: str = ""
    """Why it cannot be edited, if it cannot."""


FAMILIES: dict[str, Family] = {
    "blip-2": Family(text_model="language_model"),
    "instructblip": Family(text_model="language_model"),
    "diffusion_gemma": Family(refused="it writes many words at once, so none is predicted at a position"),
    "ernie4_5_vl_moe": Family(picture_mask="moe_mm_token_type_ids"),
    "ernie4_5_vl_moe_text": Family(picture_mask="moe_mm_token_type_ids"),
    "evolla": Family(refused="it reads proteins, not pictures"),
    "gemma3n": Family(batch_axis=1),
    "muse_spark": Family(refused="its experts write through a norm of their own, in a narrower space"),
    "pi0": Family(refused="it writes a robot's movements, not words"),
}
"""Model types (config.model_type) for which the search is not enough."""


class Architecture:
    """The facts that locating and editing need of a model.

    Args:
        model: an unmodified transformers model.

    Raises:
        ModelError: if its decoder layers, a W_out or the unembedding cannot be found, or a W_out cannot be edited
            because it is quantised or offloaded.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = getattr(model, "config", None)
        if config is None:
            raise ModelError(
                "not a transformers model",
                got=type(model).__name__,
                expected="a PreTrainedModel or a VisionLanguageModel",
            )
        self.model_type: str = config.model_type
        self.family = FAMILIES.get(self.model_type, Family())
        if self.family.refused:
            raise ModelError("models of this type cannot be edited", where=self.model_type, got=self.family.refused)
        at = model.get_submodule
        self.layers = at(self.family.layers) if self.family.layers else find_layers(model)
        self.unembedding = at(self.family.unembedding) if self.family.unembedding else find_unembedding(model)
        self.n_vocab = n_words(model, len(self.unembedding.weight))  # type: ignore[arg-type]
        self.final_norm = find_final_norm(model, self.layers)
        self.seen_as: WeakSet[nn.Module] = WeakSet([model])  # the model, and wrappers of torch.compile around it
        self.w_outs = {w_out.site: w_out for w_out in find_w_outs(model, self.layers)}
        self.n_layers = len(self.layers)  # type: ignore[arg-type]
        self.d_model = self.w_u.shape[1]
        narrow = next((w_out for w_out in self.w_outs.values() if w_out.d_model != self.d_model), None)
        if narrow:
            raise ModelError(
                "a W_out that does not add to the residual stream", where=narrow.path,
                got=f"rows of {narrow.d_model}", expected=f"rows of {self.d_model}, as the unembedding has",
            )  # fmt: skip
        dense = [w_out.d_ffn for site, w_out in self.w_outs.items() if site.expert is None]
        self.d_ffn = max(dense or [w_out.d_ffn for w_out in self.w_outs.values()])
        self.routes: dict[Site, Route | None] = {}  # how what a W_out writes goes on, by models/probe.py
        self.head: Head | None = None  # how the logits come from W_U's products, by the same
        self.image_token_id = _image_token_id(config)

    @property
    def sites(self) -> tuple[WOut, ...]:
        """Every W_out in order, each with `path`, `layer`, `expert`, `d_model` and `d_ffn`."""
        return tuple(self.w_outs[site] for site in sorted(self.w_outs))

    @property
    def w_u(self) -> Tensor:
        """The unembedding as `[n_vocab, d_model]`; row t is the direction that writes token t, if any may."""
        weight: Tensor = self.unembedding.weight  # type: ignore[assignment]
        return weight.detach()[: self.n_vocab]

    def w_out(self, site: Site) -> WOut:
        """The W_out of a site.

        Raises:
            RequestError: if the model has no such site.
        """
        if site not in self.w_outs:
            raise RequestError("the model has no such feed-forward layer", got=str(site), expected=self.site_range)
        return self.w_outs[site]

    @property
    def site_range(self) -> str:
        """The sites in words, for messages."""
        sites = sorted(self.w_outs)
        return f"{sites[0]} to {sites[-1]}"

    def check(self, neuron: Neuron) -> None:
        """Raise RequestError unless the model has this neuron."""
        d_ffn = self.w_out(neuron.site).d_ffn
        if neuron.unit >= d_ffn:
            raise RequestError("the layer has no such unit", got=str(neuron), expected=f"unit 0 to {d_ffn - 1}")

    def sites_of(self, layers: Sequence[int] | None) -> list[Site]:
        """The sites of some decoder layers, or of all.

        Args:
            layers: layer numbers from 0, or None for every layer.

        Raises:
            RequestError: if a layer does not exist or has no W_out.
        """
        if layers is None:
            return sorted(self.w_outs)
        with_w_out = {site.layer for site in self.w_outs}
        wrong = [layer for layer in layers if layer not in with_w_out]
        if wrong or not layers:
            raise RequestError(
                "no such decoder layer",
                got=list(layers),
                expected=f"layers from {min(with_w_out)} to {max(with_w_out)}",
            )
        return [site for site in sorted(self.w_outs) if site.layer in set(layers)]

    def exact(self, sites: Iterable[Site], folded: bool) -> bool | None:
        """Whether contribution scores are what neurons add to a logit.

        Args:
            sites: where the neurons are.
            folded: whether the scores follow the writings through norms and scales to the logit, or only say what is added to
                the residual stream, in units of W_U's products, as the paper's do.

        Returns:
            False if a way of another kind stands in between, None if it could not be tried.
        """
        routes = [self.routes.get(site, "unchecked") for site in sites]
        if "unchecked" in routes:
            return None
        known = [isinstance(route, Route) and (folded or route.direct) for route in routes]
        return all(known) and (self.head is not None or not folded)

    def norms_after(self, sites: Iterable[Site]) -> list[nn.Module]:
        """The norms between some W_outs and the logits, as far as they are known."""
        routes = (self.routes.get(site) for site in sites)
        found = [self.final_norm, *(route.norm for route in routes if route)]
        return list(dict.fromkeys(norm for norm in found if norm is not None))

    def require_readable(self, sites: Iterable[Site]) -> None:
        """Raise ModelError unless W_U and the W_outs of some sites are where they can be read, and not offloaded."""
        weights = {"W_U": self.w_u} | {f"the W_out of {site}": self.w_out(site).weight for site in sites}
        gone = [name for name, weight in weights.items() if weight.is_meta]
        if gone:
            instead = "" if "W_U" in gone else ", or choose other layers with layers="
            raise ModelError(
                f"{gone[0]} is offloaded and cannot be read", got=f"{len(gone)} matrices on the disk or in another memory",
                do=f"load with another device_map{instead}",
            )  # fmt: skip

    def require_editable(self, site: Site) -> WOut:
        """The W_out of a site, if its rows can be changed in place.

        Raises:
            ModelError: if the weight is quantised, offloaded, or compiled with freezing.
        """
        return self.all_editable([site])[0]

    def all_editable(self, sites: Iterable[Site]) -> list[WOut]:
        """As `require_editable`, for several sites, in about the time of one."""
        w_outs, walks = [self.w_out(site) for site in sites], [Walk(model) for model in self.seen_as]
        for w_out in w_outs:
            found = obstacle(w_out.weight, w_out.module, w_out.path, walks)
            if found:
                raise ModelError(
                    f"the W_out of {w_out.site} is {found[0]} and cannot be edited in place", where=w_out.name,
                    expected="float32, bfloat16 or float16 on a device", do=found[1],
                )  # fmt: skip
        return w_outs


def _image_token_id(config: Any) -> int | None:
    """Which token of the prompt stands for a picture, by whatever name the configuration has it."""
    places = (config, getattr(config, "vision_config", None))
    ids = (getattr(place, name, None) for place in places for name in ("image_token_id", "image_token_index"))
    return next((number for number in ids if number is not None), None)


_known: WeakKeyDictionary[nn.Module, Architecture] = WeakKeyDictionary()


def architecture_of(model: Any) -> Architecture:
    """The architecture of a VisionLanguageModel or of a bare transformers model, worked out once per model.

    Raises:
        ModelError: if it cannot be worked out.
    """
    inner = bare_model(model)
    if inner not in _known:
        _known[inner] = Architecture(inner)
    _known[inner].seen_as.add(model if isinstance(model, nn.Module) else model.model)
    return _known[inner]


def resolve(model: Any) -> Architecture:
    """Where a model keeps what locating and editing need; another name of `architecture_of`.

    Args:
        model: a VisionLanguageModel or a bare transformers model.

    Returns:
        An object with `sites`, one for each W_out.

    Raises:
        ModelError: if it cannot be worked out; it says why.

    Example:
        >>> import mmedit
        >>> site = resolve(mmedit.load("iconworld-llava")).sites[2]
        >>> site.path, site.layer, site.expert, site.d_model, site.d_ffn
        ('model.language_model.layers.2.mlp.down_proj', 2, None, 128, 512)
    """
    return architecture_of(model)


def bare_model(model: Any) -> nn.Module:
    """The transformers model inside a VisionLanguageModel or a wrapper of torch.compile, or the model itself."""
    inner = model.model if hasattr(model, "processor") and hasattr(model, "inputs") else model
    if not isinstance(inner, nn.Module):
        raise ModelError(
            "not a model", got=type(model).__name__, expected="a VisionLanguageModel or a transformers model"
        )
    return getattr(inner, "_orig_mod", inner)

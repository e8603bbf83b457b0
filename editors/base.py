"""What every editor offers: locate, execute, apply; and ROME's function face on top of them."""

from __future__ import annotations

import copy as copying
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from mmedit.errors import HparamsError, RequestError
from mmedit.hparams import AUTO, read_values
from mmedit.locate import rank
from mmedit.models.architecture import bare_model
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Neuron, NeuronRanking, Site
from mmedit.patches.base import Base
from mmedit.patches.live import Stack, stack_of
from mmedit.patches.patch import Patch
from mmedit.printable import printable
from mmedit.requests import EditRequest
from mmedit.sightings import answer_sightings, source_sightings

E = TypeVar("E", bound="Editor")
Requests = EditRequest | Sequence[EditRequest]


def requests_of(request: Requests) -> list[EditRequest]:
    """One request or several, as a list.

    Raises:
        RequestError: if there is none, or two of them swap the same source for different targets.
    """
    listed = [request] if isinstance(request, EditRequest) else list(request)
    if not listed:
        raise RequestError("an edit needs at least one request", got="an empty list")
    targets: dict[str, str] = {}
    for one in listed:
        if one.source is not None and targets.setdefault(one.source.casefold(), one.target) != one.target:
            raise RequestError(
                "two requests swap the same source for different targets", got=f"{one.source!r} → {targets[one.source.casefold()]!r} and {one.target!r}",
                do="keep one of them",
            )  # fmt: skip
    return listed


def source_of(request: EditRequest, said: str) -> str:
    """What a patch file gives as an edit's source: the request's word, or what the model says instead of the target."""
    return request.source or printable(said.strip())


class Editor(ABC):
    """An editing method with its hyperparameters.

    Args:
        hparams: an instance of the editor's `Hparams`; its defaults when None.
    """

    name: ClassVar[str]
    Hparams: ClassVar[type[Any]]

    def __init__(self, hparams: Any = None) -> None:
        self.hparams = self.Hparams() if hparams is None else hparams

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hparams})"

    @classmethod
    def from_hparams(cls: type[E], source: str | Path | Mapping[str, Any], vlm: VisionLanguageModel | None = None) -> E:
        """Make the editor with hyperparameters from a file.

        Args:
            source: a shipped name such as `iconworld-llava`, the path of a YAML file, a mapping, or `auto` for all. A value
                may be `auto` too.
            vlm: the model that `auto` derives them from.

        Raises:
            HparamsError: if there is no such file, or a key is unknown, of the wrong type or out of range; for `auto` without
                a model.

        Example:
            >>> import mmedit
            >>> mmedit.editors.MMNeurons.from_hparams("llava-1.5-7b").hparams.beta
            4.0
        """
        values = read_values(cls.Hparams, source, cls.name)
        given = {name: value for name, value in values.items() if value != AUTO}
        if len(given) == len(values):
            return cls(cls.Hparams(**given))
        if vlm is None:
            raise HparamsError("auto derives hyperparameters from a model", got="no model", do="give vlm=…")
        return cls(cls.auto(vlm, **given))

    def with_hparams(self: E, **changes: Any) -> E:
        """The same editor with some hyperparameters changed.

        Args:
            changes: new values by name.

        Raises:
            HparamsError: if the editor has no such hyperparameter, or a value is of the wrong type or out of range.

        Example:
            >>> import mmedit
            >>> mmedit.editors.MMNeurons().with_hparams(scorer="random").hparams.scorer
            'random'
        """
        return self.from_hparams(dataclasses.asdict(self.hparams) | changes)

    @classmethod
    def auto(cls, vlm: VisionLanguageModel, **given: Any) -> Any:
        """Hyperparameters for a model that no file is for; the method's own defaults, unless it can derive better ones.

        Args:
            vlm: the model.
            given: those that are not to be derived.
        """
        return cls.Hparams(**given)

    def locate(self, vlm: VisionLanguageModel, request: EditRequest) -> NeuronRanking:
        """Rank the neurons that write the request's source over all its pictures, best first, by contribution score.

        Raises:
            RequestError: if the source is not in a picture's caption; it shows the caption and its nouns.
        """
        if request.source is None:
            return rank(vlm, [answer_sightings(vlm, request.images, request.target, request.prompt)[0]])[0]
        return rank(vlm, [source_sightings(vlm, request.images, request.source, request.prompt)])[0]

    @abstractmethod
    def execute(self, vlm: VisionLanguageModel, request: Requests) -> Patch:
        """Work out an edit, or several at once as one patch; the model is the same at the end as at the start.

        Args:
            vlm: the model.
            request: what to edit, one request or a list of them.

        Returns:
            The patch, not yet live, with the provenance of each request.

        Raises:
            RequestError: if the model does not say the source, or the list is empty.
        """

    def apply(self, vlm: VisionLanguageModel, request: Requests) -> Patch:
        """Work out an edit, or several at once, and put it live on the model.

        Returns:
            The patch, to be taken out again by `patch.revert(vlm)`.

        Raises:
            RequestError: if the model does not say the source, or the list is empty.
        """
        patch = self.execute(vlm, request)
        patch.apply(vlm)
        return patch


def make_patch(
    vlm: VisionLanguageModel, editor: Editor, neurons: Sequence[Neuron], delta: Tensor, edits: Sequence[dict[str, Any]]
) -> Patch:
    """A patch that adds one row to each neuron.

    Args:
        vlm: the model that the edit was made on.
        editor: the method, with its hyperparameters.
        neurons: the neurons to change, each once.
        delta: what to add to the row of each, float32 `[k, d_model]`.
        edits: provenance, one for each concept swap.

    Returns:
        The patch, on the unpatched rows of the model: an edit may be made on top of others that are live.

    Raises:
        ModelError: if a weight is quantised or offloaded.
    """
    by_site: dict[Site, list[tuple[int, Tensor]]] = {}
    for neuron, row in zip(neurons, delta.cpu(), strict=True):
        by_site.setdefault(neuron.site, []).append((neuron.unit, row))
    deltas, base_rows = {}, {}
    for site, changes in by_site.items():
        units, rows = zip(*sorted(changes, key=lambda change: change[0]), strict=True)
        deltas[site] = torch.tensor(units), torch.stack(rows)
        vlm.architecture.require_editable(site)
        base_rows[site] = stack_of(vlm).base_rows(site, deltas[site][0])
    return Patch(deltas, base_rows, Base.of(vlm), editor.name, dataclasses.asdict(editor.hparams), tuple(edits))


def apply_to_model(
    editor: type[Editor], model: Any, tok_or_processor: Any, requests: Sequence[Any] | Mapping[str, Any] | EditRequest, hparams: Any,
    copy: bool = False, return_orig_weights: bool = False, keep_original_weight: bool = False,
) -> tuple[Any, dict[str, Tensor]]:  # fmt: skip
    """ROME's function face: edit a bare model and return the weights to restore it from.

    Args:
        editor: the method.
        model: a transformers model; edited in place unless `copy`.
        tok_or_processor: its processor.
        requests: one request or a list, as `EditRequest` or as mappings with `images` (or `image`), `source`, `target`.
        hparams: the editor's hyperparameters, or a name, path or mapping of them.
        copy: edit a deep copy instead.
        return_orig_weights: return the original of every edited parameter.
        keep_original_weight: the same, in EasyEdit's word.

    Returns:
        The edited model, and `{full parameter name: original tensor}`, empty unless asked for.

    Raises:
        RequestError: for a request that cannot be carried out; the model is then unchanged. Whatever happens, it is in
            training or evaluation as before, and the tokenizer has the padding token that it had.
    """
    model = copying.deepcopy(model) if copy else model
    with as_found(model, tok_or_processor):
        vlm = VisionLanguageModel(model, tok_or_processor, getattr(model, "name_or_path", ""))
        method = editor(hparams) if dataclasses.is_dataclass(hparams) else editor.from_hparams(hparams, vlm)
        listed = [requests] if isinstance(requests, Mapping | EditRequest) else list(requests)
        wanted = [request if isinstance(request, EditRequest) else EditRequest.from_dict(request) for request in listed]
        patch = method.execute(vlm, wanted)
        parameters = dict(bare_model(model).named_parameters())
        names = {vlm.architecture.w_out(site).name for site in patch.sites}
        originals = (
            {name: parameters[name].detach().clone() for name in sorted(names)}
            if return_orig_weights or keep_original_weight
            else {}
        )
        # for good: the caller restores from tensors, the model's own stack must not remember it
        Stack(vlm.architecture).push(patch)
    return model, originals


@contextmanager
def as_found(model: nn.Module, processor: Any) -> Iterator[None]:
    """Leave every module in training or evaluation as it was, and the tokenizer without a padding token if it had none.

    Args:
        model: a transformers model, which editing puts into evaluation mode.
        processor: its processor or tokenizer, which needs a padding token meanwhile.

    Example:
        >>> import mmedit
        >>> vlm = mmedit.load("iconworld-llava")
        >>> _ = vlm.model.train()
        >>> with as_found(vlm.model, vlm.processor):
        ...     _ = vlm.model.eval()
        >>> vlm.model.training
        True
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    modes, padding = {module: module.training for module in model.modules()}, tokenizer.pad_token
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        if tokenizer.pad_token != padding:
            tokenizer.pad_token = padding

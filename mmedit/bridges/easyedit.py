"""EasyEdit's calling convention: every editor as an algorithm of its `MultimodalEditor`.

EasyEdit calls `apply(model, processor, requests, hparams, copy, return_orig_weights, keep_original_weight, **kw)` with one
request in a list (`edit`, `edit_dataset`) or bare (`sequential_edit=True`), scores the model that it is given back, and
restores the weights that come with it. What it scores as "before the edit" in its default mode is its own model *after* the
edit; an algorithm that edits in place is then compared with itself. So the default here is a view, an edited model beside
the unedited one; only edits that shall pile up are made in place.

It scores the chat template and the target with nothing in between, and no end token. A request is therefore taught so
(`Prompt.no_space`), on the very pixels that its processor is given.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import nn

from mmedit.editors import EDITORS, Editor
from mmedit.editors.base import apply_to_model, as_found
from mmedit.errors import HparamsError, ImageError, RequestError
from mmedit.hparams import hparams_for, read_values
from mmedit.models.forcing import answer_ids
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.view import edited_view
from mmedit.requests import EditRequest, Prompt

Mode = Literal["auto", "view", "in_place"]
Apply = Callable[..., tuple[Any, dict[str, torch.Tensor]]]

PREFIX = "mmedit."  # EasyEdit restores some names of its own, LoRA among them, by other rules


@dataclass
class EasyEditHparams:
    """What EasyEdit reads and sets, and what our editor reads; made by `hparams`.

    Args:
        alg_name: the algorithm's name in EasyEdit.
        model_name: what EasyEdit loads, or a pair (model, processor).
        device: where EasyEdit puts the model.
        dtype: of the model and its inputs.
        mode: `view`, `in_place`, or `auto`; see `hparams`.
        settings: of the editor.
    """

    alg_name: str
    model_name: Any
    device: Any
    dtype: torch.dtype
    mode: Mode = "auto"
    settings: Any = None
    _made: WeakKeyDictionary[nn.Module, Editor] = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def editor_for(self, vlm: VisionLanguageModel) -> Editor:
        """The editor; what of its settings is derived from the model, is derived before the model's first edit."""
        if vlm.model not in self._made:
            name = self.alg_name.removeprefix(PREFIX)
            settings = hparams_for(vlm.name, name) if self.settings is None else self.settings
            self._made[vlm.model] = EDITORS[name].from_hparams(settings, vlm)
        return self._made[vlm.model]


def hparams(
    model_name: Any, device: Any = "cpu", editor: str = "MMNeurons", settings: Any = None, mode: Mode = "auto",
    dtype: torch.dtype | None = None,
) -> EasyEditHparams:  # fmt: skip
    """Hyperparameters to give to EasyEdit's `MultimodalEditor.from_hparams`.

    Args:
        model_name: a name that EasyEdit loads (LLaVA-OneVision and Qwen-VL), or a pair (model, processor) of any kind; with a
            pair, set `editor.model_name = hparams.model_name = "llava-onevision"` and `editor.vis_tok` on EasyEdit's editor.
        device: where EasyEdit puts it.
        editor: a name of `mmedit.editors.EDITORS`.
        settings: of the editor: a shipped name, a YAML file, a mapping, or `auto` to derive them from the model; when None,
            those that are shipped for the model, or else `auto`.
        mode: `view` gives EasyEdit an edited model beside the unedited one, so that its locality is true; `in_place` edits
            the model and gives the originals to restore it from; `auto` is in place for `sequential_edit=True`, where edits
            pile up, and else a view.
        dtype: of the model and its inputs; that of the model where a pair is given, else float32, as in EasyEdit.

    Returns:
        An object with all that EasyEdit reads.

    Raises:
        HparamsError: if there is no such editor, setting or mode.

    Example:
        >>> hparams("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "cuda:0").alg_name
        'mmedit.MMNeurons'
    """
    if editor not in EDITORS:
        raise HparamsError("no such editor", got=repr(editor), expected=f"one of {', '.join(EDITORS)}")
    if mode not in get_args(Mode):
        raise HparamsError("no such mode", got=repr(mode), expected=" or ".join(get_args(Mode)))
    if dtype is None:
        dtype = torch.float32 if isinstance(model_name, str) else model_name[0].dtype
    if settings is not None:
        read_values(EDITORS[editor].Hparams, settings, editor)  # what is wrong is said now
    return EasyEditHparams(PREFIX + editor, model_name, device, dtype, mode, settings)


def register(algorithms: MutableMapping[str, Any] | None = None) -> tuple[str, ...]:
    """Make every editor known to EasyEdit; before `MultimodalEditor.from_hparams`, once.

    Args:
        algorithms: the table to add them to; EasyEdit's `ALG_MULTIMODAL_DICT` when None.

    Returns:
        Their names there.

    Raises:
        RequestError: if EasyEdit is not installed, or another algorithm has such a name.

    Example:
        >>> "mmedit.MMNeurons" in register({})
        True
    """
    if algorithms is None:
        try:
            algorithms = importlib.import_module("easyeditor.util.alg_dict").ALG_MULTIMODAL_DICT
        except ImportError as error:
            do = "clone github.com/zjunlp/EasyEdit, install its requirements and put its folder on PYTHONPATH"
            raise RequestError("EasyEdit cannot be imported", got=str(error), do=do) from error
    ours = {PREFIX + name: apply_of(name) for name in EDITORS}
    taken = [name for name, apply in ours.items() if algorithms.get(name, apply) is not apply]
    if taken:
        raise RequestError("another algorithm has this name", got=taken[0], do="take it out of the table")
    algorithms.update(ours)
    return tuple(ours)


@cache
def apply_of(name: str) -> Apply:
    """One editor as EasyEdit calls it; `apply_mm_neurons` and its like are the same by name.

    Args:
        name: in `mmedit.editors.EDITORS`.

    Returns:
        A function of model, processor, one request or a list, and what `hparams` made. It gives the edited model, and
        `{full parameter name: original tensor}` where that is the model itself; where its answers are as wanted already, the
        model as it is.
    """

    def apply(
        model: Any, tok_or_processor: Any, requests: Mapping[str, Any] | Sequence[Mapping[str, Any]], hparams: EasyEditHparams,
        copy: bool = False, return_orig_weights: bool = True, keep_original_weight: bool = False, **kw: Any,
    ) -> tuple[Any, dict[str, torch.Tensor]]:  # fmt: skip
        if getattr(hparams, "alg_name", None) != PREFIX + name or not isinstance(hparams, EasyEditHparams):
            got = f"{type(hparams).__name__} for {getattr(hparams, 'alg_name', None)!r}"
            do = "make them with mmedit.bridges.easyedit.hparams"
            raise HparamsError("hyperparameters of another algorithm", got=got, expected=PREFIX + name, do=do)
        bare = isinstance(requests, Mapping)  # only `sequential_edit` hands over one by itself
        listed: list[Any] = [requests] if bare else list(requests)
        asked = [request_of(one) for one in listed]
        in_place = hparams.mode == "in_place" or (hparams.mode == "auto" and bare)
        with as_found(model, tok_or_processor):
            vlm = VisionLanguageModel(model, tok_or_processor, getattr(model, "name_or_path", ""))
            editor, wanted = hparams.editor_for(vlm), [one for one in asked if not _said_already(vlm, one)]
            if asked and not wanted:  # nothing to teach, and no reason to stop a run of thousands
                return model, {}
            if in_place:
                weights = (copy, return_orig_weights, keep_original_weight)
                return apply_to_model(type(editor), model, tok_or_processor, wanted, editor.hparams, *weights)
            patch = editor.execute(vlm, wanted)
        return edited_view(model, patch), {}

    apply.__name__ = apply.__qualname__ = f"apply_{_method(name)}"
    apply.__doc__ = f"`{name}` as EasyEdit calls it; see `apply_of`."
    return apply


def request_of(values: Mapping[str, Any]) -> EditRequest:
    """A request of EasyEdit: the target is to be the whole answer to the prompt, or with a `source` a word in it.

    Args:
        values: `prompt`, `target`, `image` (a PIL picture, a list of one, or a path), and optionally `source`. Other keys are
            EasyEdit's own.

    Raises:
        ImageError: if the picture cannot be read.
        RequestError: if a field is missing, or there is not one still picture.

    Example:
        >>> from PIL import Image
        >>> request = request_of({"prompt": "What is it?", "target": "a dog", "image": [Image.new("RGB", (8, 8))]})
        >>> request.source, request.target, request.prompt.no_space
        (None, 'a dog', True)
    """
    missing = [name for name in ("prompt", "target", "image") if values.get(name) is None]
    if missing:
        raise RequestError(
            "a request lacks fields", got=f"keys {sorted(map(str, values))}", expected=f"also {', '.join(missing)}"
        )
    kind, image = values.get("file_type") or "image", values["image"]
    pictures = list(image) if isinstance(image, list | tuple) else [image]
    if kind == "video" or len(pictures) != 1:
        got = f"{len(pictures)} pictures, file_type {kind!r}"
        raise RequestError("an edit is made from one still picture", got=got, do="give a request for each")
    return EditRequest(
        _as_seen(pictures[0]), values.get("source"), values["target"], Prompt(values["prompt"], no_space=True)
    )


def _as_seen(image: Any) -> Any:
    """A picture as EasyEdit's processor has it: turned by no EXIF tag, which EasyEdit does not look at."""
    if not isinstance(image, Image.Image):
        return image
    try:
        plain = image.copy()
    except Exception as error:  # it was opened, but not read yet
        raise ImageError("cannot read this picture", where="a PIL picture", got=str(error)) from error
    plain.info = {name: value for name, value in image.info.items() if name == "transparency"}
    return plain


def _said_already(vlm: VisionLanguageModel, request: EditRequest) -> bool:
    """Whether the model gives the wanted answer to the letter, without any edit."""
    if request.source is not None:
        return False
    said = vlm.generate(list(request.images), request.prompt)[0]
    return list(said.ids) == answer_ids(vlm, request.prompt, request.target)


def _method(name: str) -> str:
    """The name of an editor's module, which its functions are called by: `mm_neurons`."""
    return EDITORS[name].__module__.rpartition(".")[2]


def __getattr__(name: str) -> Any:
    for editor in EDITORS:
        if name == f"apply_{_method(editor)}":
            return apply_of(editor)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(f"apply_{_method(editor)}" for editor in EDITORS)})

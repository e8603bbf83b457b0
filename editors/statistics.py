"""Second moments C = E[o oᵀ] of what enters a W_out, over pictures that an edit is not about; ROME and MEMIT move the rest least by it.

Worked out once per model, pictures and layer, and kept in the folder in which the unedited model's answers are
(`MMEDIT_CACHE`). The key is the content, as there: a model that was changed in any way never finds another model's moments.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmedit.editors.teaching import removing
from mmedit.editors.unrelated import UnrelatedEditor
from mmedit.errors import OutputError
from mmedit.evaluation.answers import default_folder
from mmedit.files import make_folder, replacing
from mmedit.models.architecture import WOut, bare_model
from mmedit.models.fingerprint import fingerprint
from mmedit.models.finite import not_finite
from mmedit.models.forcing import forced_inputs
from mmedit.models.images import image_digest
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Site
from mmedit.requests import Prompt

NAME = "second_moment"


def second_moments(
    vlm: VisionLanguageModel, w_outs: Sequence[WOut], images: Sequence[Any], prompt: str | Prompt | None = None,
    folder: str | Path | bool | None = None,
) -> dict[Site, Tensor]:  # fmt: skip
    """The mean of o oᵀ over all positions of pictures, prompt and what the model says about them.

    Args:
        vlm: the model, as it is now.
        w_outs: which layers.
        images: the pictures.
        prompt: put to each; the paper's caption prompt when None.
        folder: where they are kept; as for `mmedit.evaluation.answers.Baselines`.

    Returns:
        For each site C `[d_ffn, d_ffn]` in float32, on the weight's device.

    Raises:
        ImageError: if a picture cannot be read.
        ModelError: if the model computes NaN or infinity about one.

    Example:
        >>> import mmedit
        >>> from mmedit.background import drawn_pictures
        >>> from mmedit.editors.patching import modules_of
        >>> vlm = mmedit.load("iconworld-llava")
        >>> moments = second_moments(vlm, modules_of(vlm.architecture, [2]), drawn_pictures(2), folder=False)
        >>> moments[mmedit.Site(2)].shape
        torch.Size([512, 512])
    """
    place = None if folder is False else default_folder() if folder in (None, True) else Path(str(folder))
    mark = fingerprint(vlm) if place else None
    files = {} if place is None or mark is None else _files(place, mark, vlm.render(prompt), w_outs, images)
    read = {site: _read(file, vlm.architecture.w_out(site)) for site, file in files.items()}
    known = {site: matrix for site, matrix in read.items() if matrix is not None}
    fresh = _measured(vlm, [w_out for w_out in w_outs if w_out.site not in known], images, prompt)
    for site, matrix in fresh.items():
        if site in files:
            _write(files[site], matrix)
    return {w_out.site: (known | fresh)[w_out.site].to(w_out.weight.device) for w_out in w_outs}


def _measured(
    vlm: VisionLanguageModel, w_outs: Sequence[WOut], images: Sequence[Any], prompt: str | Prompt | None
) -> dict[Site, Tensor]:
    """One pass for each picture with its answer: with a single row there is no padding to be left out.

    What comes out at the end is looked at too: an answer that overflowed below is none to measure.
    """
    sums = {w_out.site: torch.zeros(w_out.d_ffn, w_out.d_ffn, device=w_out.weight.device) for w_out in w_outs}
    counts, finite = dict.fromkeys(sums, 0), list[bool]()

    def see(site: Site, module: nn.Module, args: tuple[Any, ...]) -> None:
        o = args[0].detach().reshape(-1, args[0].shape[-1]).float()
        sums[site] += o.T @ o
        counts[site] += len(o)

    def see_end(module: nn.Module, args: tuple[Any, ...]) -> None:
        finite.append(bool(args[0][..., -1, :].isfinite().all()))

    if not w_outs:
        return {}
    said = vlm.generate(list(images), prompt)
    hooks: list[tuple[nn.Module, Any]] = [(w_out.module, partial(see, w_out.site)) for w_out in w_outs]
    hooks += [(norm, see_end) for norm in [vlm.architecture.final_norm] if norm is not None]
    with removing(module.register_forward_pre_hook(hook) for module, hook in hooks), torch.inference_mode():
        for image, generation in zip(images, said, strict=True):
            inputs, _ = forced_inputs(vlm, [image], prompt, [generation.ids])
            bare_model(vlm.reader(inputs))(**inputs, use_cache=False)
    for site, matrix in sums.items():
        if not bool(matrix.isfinite().all()):
            raise not_finite(vlm.model, site)
    if not all(finite):
        raise not_finite(vlm.model, max(vlm.architecture.w_outs))
    return {site: matrix / max(1, counts[site]) for site, matrix in sums.items()}


def _files(place: Path, mark: str, text: str, w_outs: Sequence[WOut], images: Sequence[Any]) -> dict[Site, Path]:
    """Where the moments of each site are kept."""
    content = "\n".join([f"{NAME} 1", mark, text, *(image_digest(image) for image in images)])
    keys = {w_out.site: hashlib.blake2b(f"{content}\n{w_out.site}".encode(), digest_size=20) for w_out in w_outs}
    return {site: place / "moments" / f"{key.hexdigest()}.safetensors" for site, key in keys.items()}


def _read(file: Path, w_out: WOut) -> Tensor | None:
    """What is kept in a file, if it is whole."""
    try:
        found: Tensor = load_file(file)[NAME]
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    fits = found.shape == (w_out.d_ffn, w_out.d_ffn) and found.dtype == torch.float32 and bool(found.isfinite().all())
    return found if fits else None


def _write(file: Path, matrix: Tensor) -> None:
    try:
        make_folder(file.parent)
        with replacing(file, wait=True) as part:  # another run may have worked out the same
            save_file({NAME: matrix.cpu().contiguous()}, part)
    except (OutputError, SafetensorError) as error:
        warnings.warn(f"second moments are not kept: {file}: {error}", stacklevel=4)


class SecondMomentEditor(UnrelatedEditor):
    """An editor that knows what enters W_outs otherwise; `ridge` is among its hyperparameters."""

    def moments(self, vlm: VisionLanguageModel, w_outs: Sequence[WOut]) -> dict[Site, Tensor]:
        """C for each site `[d_ffn, d_ffn]`, over the editor's pictures."""
        return second_moments(vlm, w_outs, self.unrelated_pictures())

    def regular(self, c: Tensor) -> Tensor:
        """C in double precision, with `ridge` times its mean diagonal added, so that it can be inverted."""
        shifted = c.double()
        shifted.diagonal().add_(self.hparams.ridge * c.diagonal().mean())
        return shifted

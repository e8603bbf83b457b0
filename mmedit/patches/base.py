"""What a patch was made on: the model in words, and whether rows and factors fit it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmedit.errors import PatchError
from mmedit.models.architecture import Architecture, architecture_of, bare_model
from mmedit.neuron import Site

Delta = tuple[Tensor, Tensor]  # units [k], rows [k, d_model]
Factors = tuple[Tensor, Tensor]  # left [d_ffn, r], right [r, d_model]


@dataclass(frozen=True)
class Base:
    """The model that a patch was made on.

    Args:
        model: what it was loaded from.
        revision: of the Hub repository, if any.
        model_type: its config.model_type.
        n_layers: decoder layers.
        d_model: width of the residual stream.
        d_ffn: hidden units per feed-forward network.
        config_digest: SHA-256 of its configuration.
        weights: the type and a digest of weights that no patch changes, to tell models of one shape apart; empty in files of
            before it was kept.
    """

    model: str
    revision: str | None
    model_type: str
    n_layers: int
    d_model: int
    d_ffn: int
    config_digest: str
    weights: str = ""

    @classmethod
    def of(cls, vlm: Any) -> Base:
        """Describe a VisionLanguageModel or a bare transformers model."""
        architecture, config = architecture_of(vlm), bare_model(vlm).config
        config_json = config.to_json_string(use_diff=False)  # type: ignore[union-attr, operator]
        lines = [
            line
            for line in config_json.splitlines()
            if not any(f'"{key}"' in line for key in ("_name_or_path", "transformers_version", "dtype"))
        ]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        name = getattr(vlm, "name", "") or getattr(config, "_name_or_path", "")
        return cls(
            name,
            getattr(vlm, "revision", None),
            architecture.model_type,
            architecture.n_layers,
            architecture.d_model,
            architecture.d_ffn,
            digest,
            _mark(architecture),
        )


def _mark(architecture: Architecture) -> str:
    """The type and a digest of some rows of W_U and of the final norm; empty where they cannot be read."""
    w_u, norm = architecture.w_u, getattr(architecture.final_norm, "weight", None)
    parts = [w_u[:: max(1, len(w_u) // 64)], *([norm.detach()] if isinstance(norm, Tensor) else [])]
    if any(part.is_meta for part in parts):
        return ""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return f"{w_u.dtype}:{digest.hexdigest()[:32]}"


def matrix_digest(matrix: Tensor) -> str:
    """SHA-256 of a W_out `[d_ffn, d_model]`, the same in every type that holds its numbers."""
    digest = hashlib.sha256()
    for rows in torch.split(matrix, 1024):  # so that it never stands in float32 whole
        digest.update(rows.float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def check_rows_given(base: Base, site: Site, delta: Delta, base_rows: Tensor) -> None:
    """Raise PatchError unless the units and rows of a site fit each other and their base."""
    units, rows = delta
    shape = (len(units), base.d_model) if units.dim() == 1 else None
    if shape is None or units.dtype != torch.int64 or not len(units):
        raise PatchError(
            "the units of a site are a non-empty list of int64",
            where=str(site),
            got=f"{units.dtype} {list(units.shape)}",
        )
    if rows.dtype != torch.float32 or tuple(rows.shape) != shape or tuple(base_rows.shape) != shape:
        raise PatchError(
            "a patch's rows have the wrong shape or type",
            where=str(site),
            got=f"delta {rows.dtype} {list(rows.shape)}, base {list(base_rows.shape)}",
            expected=f"delta torch.float32 {list(shape)}, base {list(shape)}",
        )
    if base_rows.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise PatchError(
            "base rows have a type that no model has",
            where=str(site),
            got=base_rows.dtype,
            expected="float32, bfloat16 or float16",
        )
    if site.layer >= base.n_layers or not bool((units[1:] > units[:-1]).all()) or int(units[0]) < 0:
        raise PatchError(
            "a patch's units are sorted, distinct and inside the model",
            where=str(site),
            got=units.tolist()[:8],
            expected=f"layer below {base.n_layers}",
        )
    if site.expert is None and int(units[-1]) >= base.d_ffn:
        raise PatchError(
            "a patch's units are inside the model",
            where=str(site),
            got=int(units[-1]),
            expected=f"below {base.d_ffn}",
        )
    if not bool(torch.isfinite(rows).all()) or not bool(torch.isfinite(base_rows).all()):
        raise PatchError(
            "a patch holds only finite numbers",
            where=str(site),
            got="NaN or infinity",
            do="make the edit again with a smaller step",
        )


def check_factors(base: Base, site: Site, factors: Factors) -> None:
    """Raise PatchError unless the factors of a site fit each other and their base."""
    left, right = factors
    fits = left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0] > 0 and right.shape[1] == base.d_model
    if not fits or site.layer >= base.n_layers or (site.expert is None and left.shape[0] != base.d_ffn):
        raise PatchError(
            "a low-rank edit has the wrong shape",
            where=str(site),
            got=f"{list(left.shape)} and {list(right.shape)}",
            expected=f"[{base.d_ffn}, r] and [r, {base.d_model}] in a layer below {base.n_layers}",
        )
    if left.dtype != torch.float32 or right.dtype != torch.float32:
        raise PatchError("a low-rank edit is float32", where=str(site), got=f"{left.dtype} and {right.dtype}")
    if not bool(torch.isfinite(left).all()) or not bool(torch.isfinite(right).all()):
        raise PatchError("a patch holds only finite numbers", where=str(site), got="NaN or infinity")

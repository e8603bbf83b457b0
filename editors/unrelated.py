"""Editors that look at pictures which an edit is not about, so as to leave the rest alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmedit.background import drawn_pictures
from mmedit.editors.base import Editor


class UnrelatedEditor(Editor):
    """An editor that looks at unrelated pictures.

    Args:
        hparams: its hyperparameters, with `n_unrelated` among them.
        unrelated: pictures that edits are not about; `n_unrelated` drawings of everyday things when None.
    """

    def __init__(self, hparams: Any = None, unrelated: Sequence[Any] | None = None) -> None:
        super().__init__(hparams)
        self.unrelated = unrelated

    def with_hparams(self, **changes: Any) -> Any:
        """The same editor with some hyperparameters changed; as `Editor.with_hparams`."""
        changed = super().with_hparams(**changes)
        changed.unrelated = self.unrelated
        return changed

    def unrelated_pictures(self) -> list[Any]:
        """The given pictures, or as many drawings as the hyperparameters say."""
        return drawn_pictures(self.hparams.n_unrelated) if self.unrelated is None else list(self.unrelated)

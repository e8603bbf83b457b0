"""Hyperparameters in their ranges."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

from mmedit.errors import HparamsError


def check_ranges(hparams: Any, least: Mapping[str, float] | None = None, above: Mapping[str, float] | None = None) -> None:
    """Raise HparamsError unless hyperparameters are at least, or above, a bound; None is always allowed, an empty list never."""
    for bounds, holds, words in ((least or {}, operator.ge, "{:g} or more"), (above or {}, operator.gt, "above {:g}")):
        for name, bound in bounds.items():
            value = getattr(hparams, name)
            values = value if isinstance(value, list) else [bound + 1 if value is None else value]
            if not values or not all(math.isfinite(one) and holds(one, bound) for one in values):
                raise HparamsError("a hyperparameter out of range", where=name, got=repr(value), expected=words.format(bound))

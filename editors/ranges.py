"""Hyperparameters in their ranges."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

from mmedit.errors import HparamsError


def check(hparams: Any, name: str, holds: object, expected: str) -> None:
    """Raise HparamsError, which names a hyperparameter and what would be right, unless something holds."""
    if not holds:
        got = repr(getattr(hparams, name))
        raise HparamsError("a hyperparameter out of range", where=name, got=got, expected=expected)


def check_ranges(hparams: Any, least: Mapping[str, float], above: Mapping[str, float]) -> None:
    """Raise HparamsError unless hyperparameters are finite and at least, or above, a bound; for a list, all that is in it.

    None is always allowed, an empty list never.
    """
    for bounds, inside, words in ((least, operator.ge, "{:g} or more"), (above, operator.gt, "above {:g}")):
        for name, bound in bounds.items():
            value = getattr(hparams, name)
            values = value if isinstance(value, list) else [value]
            holds = values and all(one is None or (math.isfinite(one) and inside(one, bound)) for one in values)
            check(hparams, name, holds, words.format(bound))

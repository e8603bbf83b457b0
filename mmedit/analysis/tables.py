"""Rows of a report's tables: how a method is named, and an estimate with its interval."""

from __future__ import annotations

from collections.abc import Mapping

from mmedit.analysis.study import Table
from mmedit.analysis.survey import METHODS
from mmedit.evaluation.intervals import Estimate

INTERVAL = ("value", "low", "high", "n")
"""The columns of `cells`."""


def named(method: str) -> str:
    """A method as readers know it."""
    return METHODS.get(method, method)


def cells(e: Estimate) -> tuple[float, float, float, int]:
    """An estimate as the cells of a row."""
    return e.value, e.low, e.high, e.n


def by_number(name: str, first: str, points: Mapping[str, Mapping[int, Estimate]]) -> Table:
    """A table of each method's estimates over some number, whose column is `first`."""
    rows = [(named(method), x, *cells(e)) for method, found in points.items() for x, e in found.items()]
    return Table(name, ("method", first, *INTERVAL), rows)

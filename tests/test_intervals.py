"""Means with intervals: what resampling must and must not do."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedit.evaluation.intervals import estimate

law = settings(deadline=None, max_examples=40)
VALUES = st.lists(st.floats(-5, 5), min_size=1, max_size=40)


@law
@given(VALUES)
def test_the_mean_lies_in_its_interval_and_the_interval_among_the_values(values: list[float]) -> None:
    e = estimate(values)
    assert e.n == len(values) and e.value == pytest.approx(np.mean(values), abs=1e-9)
    assert min(values) - 1e-9 <= e.low <= e.high <= max(values) + 1e-9
    assert (
        e.low - 1e-9 <= e.value <= e.high + 1e-9 or len(values) < 5
    )  # percentiles of few skewed values may miss the mean


@law
@given(VALUES, st.floats(0.1, 10), st.floats(-3, 3))
def test_intervals_move_and_stretch_with_their_values(values: list[float], scale: float, shift: float) -> None:
    a, b = estimate(values), estimate([scale * v + shift for v in values])
    assert (b.low, b.high) == (
        pytest.approx(scale * a.low + shift, abs=1e-6),
        pytest.approx(scale * a.high + shift, abs=1e-6),
    )


def test_what_belongs_together_is_drawn_together() -> None:
    values = [1.0] * 10 + [0.0] * 10
    one_group, by_edit, alone = (estimate(values, groups) for groups in ([0] * 20, [0] * 10 + [1] * 10, None))
    assert one_group.low == one_group.high == 0.5
    assert (by_edit.low, by_edit.high) == (0.0, 1.0)
    assert 0.2 < alone.low < 0.5 < alone.high < 0.8


def test_weights_are_repetitions() -> None:
    weighted = estimate([1.0, 0.0], ["a", "b"], weights=[3, 1])
    repeated = estimate([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert (weighted.value, weighted.low, weighted.high) == (repeated.value, repeated.low, repeated.high)


def test_the_interval_holds_the_truth_about_95_times_of_100() -> None:
    rng, hits = random.Random(0), 0
    for trial in range(300):
        e = estimate([float(rng.random() < 0.7) for _ in range(60)], seed=trial)
        hits += e.low <= 0.7 <= e.high
    assert 0.90 <= hits / 300 <= 0.985


def test_the_same_seed_gives_the_same_interval_and_nothing_gives_none() -> None:
    values = np.random.default_rng(0).normal(size=30).tolist()
    assert estimate(values) == estimate(values) and estimate(values) != estimate(values, seed=1)
    with pytest.raises(ValueError, match="no values"):
        estimate([])

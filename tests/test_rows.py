"""Rows of W_out under patches, as the live stack and the baker compute them: in pieces or whole, by blocks or at once."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import torch
from test_patch import low_rank_patch, random_patch

import mmedit
from mmedit.errors import BaseMismatchError, RequestError
from mmedit.patches import rows
from mmedit.patches.base import Base
from mmedit.patches.rows import Entry, check_model, check_rows, edited_rows, units_of

SITE = mmedit.Site(0)
ROWS = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
UNITS = [3, 7, 8, 20, 31]


def sparse(units: list[int], model: str = "m") -> mmedit.Patch:
    """A patch of some of ROWS."""
    here = torch.tensor(units)
    return mmedit.Patch({SITE: (here, -ROWS[here])}, {SITE: ROWS[here]}, Base(model, "r7", "llava", 1, 4, 32, ""))


def low_rank() -> mmedit.Patch:
    factors = ROWS[:, :2].contiguous(), ROWS[:2].contiguous()
    digest = hashlib.sha256(ROWS.numpy().tobytes()).hexdigest()
    base = Base("m", None, "llava", 1, 4, 32, "")
    return mmedit.Patch({}, {}, base, low_rank={SITE: factors}, base_digests={SITE: digest})


def test_the_units_of_patches_are_those_of_any_in_order() -> None:
    entries = [Entry(sparse([20, 31]), 1.0), Entry(sparse([3, 20]), 0.0)]
    assert units_of(entries) == {SITE: [3, 20, 31]}
    assert units_of([*entries, Entry(low_rank(), 1.0)]) == {SITE: list(range(32))}
    assert units_of([]) == {}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_rows_are_checked_in_pieces_as_they_are_whole(size: int) -> None:
    """And what is said of a wrong one is the same, however they are cut."""
    patch, found = sparse(UNITS), ROWS[UNITS]
    check_rows(patch, SITE, found.split(size))
    found[3, 1] += 0.25
    found[1, 2] += 0.125
    with pytest.raises(BaseMismatchError) as caught:
        check_rows(patch, SITE, found.split(size))
    worst, off = ("L0.U20", 0.25) if size > 3 else ("L0.U7", 0.125)  # the first piece that is wrong
    assert (caught.value.where, caught.value.got) == (worst, f"a W_out row that is off by up to {off}")
    assert caught.value.expected == "the weights of m, revision r7"
    with pytest.raises(BaseMismatchError, match="the weights of its base"):
        check_rows(sparse(UNITS, model=""), SITE, found.split(size))


@pytest.mark.parametrize("size", [1, 7, 32])
def test_a_whole_w_out_is_checked_in_pieces_by_its_digest(size: int) -> None:
    check_rows(low_rank(), SITE, ROWS.split(size))
    with pytest.raises(BaseMismatchError, match=r"L0[\s\S]*another digest"):
        check_rows(low_rank(), SITE, ROWS.flip(0).split(size))


def test_a_low_rank_edit_gives_a_row_the_same_bits_whichever_others_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rows, "BLOCK", 8)
    patch, every = low_rank(), torch.arange(32)
    left, right = patch.low_rank[SITE]
    whole = edited_rows(SITE, every, ROWS, [Entry(patch, 0.5)])
    assert torch.allclose(whole, ROWS + 0.5 * left @ right, atol=1e-6)
    for units in ([5], [7, 8], [0, 9, 30], UNITS, [24, 25, 26]):
        some = edited_rows(SITE, torch.tensor(units), ROWS[units], [Entry(patch, 0.5)])
        assert torch.equal(some, whole[units])


def test_units_that_a_model_lacks_are_told(untrained: mmedit.VisionLanguageModel) -> None:
    """A patch's own base may be wider: the units alone count."""
    architecture = untrained.architecture
    for patch in (random_patch(untrained, 1), low_rank_patch(untrained, 1)):
        check_model(patch, architecture)
    patch = random_patch(untrained, 1, layers=(3,))
    wide, some = dataclasses.replace(patch.base, d_ffn=1024), torch.tensor([3, 5, 9, 511])
    fits = dataclasses.replace(patch, base=wide, deltas={mmedit.Site(3): (some, patch.deltas[mmedit.Site(3)][1])})
    check_model(fits, architecture)
    some = torch.tensor([3, 5, 9, 512])
    with pytest.raises(RequestError, match="no such unit"):
        check_model(
            dataclasses.replace(fits, deltas={mmedit.Site(3): (some, patch.deltas[mmedit.Site(3)][1])}), architecture
        )

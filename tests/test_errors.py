"""Every error says what, where, got, expected and what to do."""

import pickle

import pytest

from mmedit import errors
from mmedit.errors import MmeditError

FIELDS = {"where": "W", "got": "G", "expected": "E", "do": "D"}
LINES = {"where": "  where: W", "got": "  got: G", "expected": "  expected: E", "do": "  to do: D"}
TYPES = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_an_mmedit_error_that_says_all_it_knows(kind: type[MmeditError]) -> None:
    with pytest.raises(MmeditError) as caught:
        raise kind("what is wrong", **FIELDS)
    assert str(caught.value).splitlines() == ["what is wrong", *LINES.values()]


@pytest.mark.parametrize("left_out", FIELDS)
def test_what_is_not_known_is_left_out(left_out: str) -> None:
    told = str(MmeditError("what is wrong", **{**FIELDS, left_out: None}))
    assert told.splitlines() == ["what is wrong", *(line for name, line in LINES.items() if name != left_out)]


def test_a_value_that_is_merely_false_is_told() -> None:
    assert str(MmeditError("too few", got=0, expected="")) == "too few\n  got: 0\n  expected: "


def test_fields_can_be_read_back_and_survive_another_process() -> None:
    error = pickle.loads(pickle.dumps(errors.PatchError("what is wrong", **FIELDS)))
    assert {name: getattr(error, name) for name in FIELDS} == FIELDS
    assert error.what == "what is wrong"


def test_a_patch_for_another_model_is_a_patch_error() -> None:
    assert issubclass(errors.BaseMismatchError, errors.PatchError)

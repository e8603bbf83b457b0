"""What can go wrong, as types: each error says what, where, got, expected and what to do."""

from __future__ import annotations


class MmeditError(Exception):
    """Something that the user can put right.

    Args:
        what: one sentence that says what is wrong.
        where: the file, field, layer or neuron concerned.
        got: what was found there.
        expected: what would have been right.
        do: what to do about it.

    Example:
        >>> print(MmeditError("no such layer", got=9, expected="0 to 5", do="choose another layer"))
        no such layer
          got: 9
          expected: 0 to 5
          to do: choose another layer
    """

    def __init__(
        self, what: str, *, where: object = None, got: object = None, expected: object = None, do: str | None = None
    ) -> None:
        self.what, self.where, self.got, self.expected, self.do = what, where, got, expected, do
        super().__init__(what)

    def __str__(self) -> str:
        parts = {"where": self.where, "got": self.got, "expected": self.expected, "to do": self.do}
        return "\n".join([self.what, *(f"  {name}: {value}" for name, value in parts.items() if value is not None)])


class RequestError(MmeditError):
    """A request that cannot be carried out: its source is not in the caption, its layer does not exist, …"""


class ImageError(MmeditError):
    """A picture that is missing, broken or of a kind that cannot be read."""


class DataError(MmeditError):
    """A benchmark or a list of pictures that is not in the format that it should be in."""


class ModelError(MmeditError):
    """A model that cannot be found, loaded or edited."""


class HparamsError(MmeditError):
    """A hyperparameter file with an unknown name, a wrong type or a value out of range."""


class PatchError(MmeditError):
    """A patch file that is not a valid patch, or a patch that cannot be used so."""


class BaseMismatchError(PatchError):
    """A patch for another model than the one it is put on."""


class OutputError(MmeditError):
    """A file or folder that cannot be written."""

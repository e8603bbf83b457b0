"""The words for a neuron: where it is (`Site`, `Neuron`) and how it ranks (`NeuronRanking`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from mmedit.errors import RequestError
from mmedit.files import write_text

Expert = int | Literal["shared"] | None
_NEURON = re.compile(r"L(\d+)(?:\.(?:E(\d+)|(S)))?\.U(\d+)")


def _order(expert: Expert) -> int:
    return -2 if expert is None else -1 if expert == "shared" else expert


@dataclass(frozen=True)
class Site:
    """One W_out of a model: decoder layer, and in a mixture of experts which expert.

    Args:
        layer: decoder layer, from 0.
        expert: None for a dense feed-forward, an expert's number, or `"shared"`.

    Example:
        >>> str(Site(20)), str(Site(20, 3)), Site(20, "shared").key
        ('L20', 'L20.E3', 'layers.20.shared')
    """

    layer: int
    expert: Expert = None

    def __str__(self) -> str:
        return f"L{self.layer}" + {None: "", "shared": ".S"}.get(self.expert, f".E{self.expert}")  # type: ignore[arg-type]

    def __lt__(self, other: Site) -> bool:
        return (self.layer, _order(self.expert)) < (other.layer, _order(other.expert))

    @property
    def key(self) -> str:
        """The beginning of this site's tensor names in a patch file."""
        return f"layers.{self.layer}" + {None: "", "shared": ".shared"}.get(self.expert, f".experts.{self.expert}")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Neuron:
    """A hidden unit of a feed-forward network; its output vector is row `unit` of that W_out.

    Args:
        layer: decoder layer, from 0.
        unit: hidden unit, from 0.
        expert: None for a dense feed-forward, an expert's number, or `"shared"`.

    Raises:
        RequestError: if layer, unit or expert is negative.

    Example:
        >>> str(Neuron(20, 188)), str(Neuron(20, 188, expert=3)), Neuron.parse("L20.S.U188")
        ('L20.U188', 'L20.E3.U188', Neuron(layer=20, unit=188, expert='shared'))
    """

    layer: int
    unit: int
    expert: Expert = None

    def __post_init__(self) -> None:
        if self.layer < 0 or self.unit < 0 or (isinstance(self.expert, int) and self.expert < 0):
            got = f"layer {self.layer}, unit {self.unit}, expert {self.expert}"
            raise RequestError("a neuron's layer, unit and expert count from 0", got=got, do="give numbers from 0 up")

    def __str__(self) -> str:
        return f"{self.site}.U{self.unit}"

    def __lt__(self, other: Neuron) -> bool:
        return (self.site, self.unit) < (other.site, other.unit) if self.site != other.site else self.unit < other.unit

    @property
    def site(self) -> Site:
        """The W_out that the neuron writes through."""
        return Site(self.layer, self.expert)

    @classmethod
    def parse(cls, text: str) -> Neuron:
        """Read a neuron as it is printed.

        Raises:
            RequestError: if the text has another form.

        Example:
            >>> Neuron.parse("L20.U188")
            Neuron(layer=20, unit=188, expert=None)
        """
        found = _NEURON.fullmatch(text)
        if not found:
            raise RequestError("not a neuron", got=repr(text), expected="L20.U188, L20.E3.U188 or L20.S.U188")
        layer, expert, shared, unit = found.groups()
        return cls(int(layer), int(unit), "shared" if shared else None if expert is None else int(expert))


def by_site(neurons: Sequence[Neuron]) -> dict[Site, list[int]]:
    """The sites of some neurons, each with the places that its neurons have among them."""
    places: dict[tuple[int, Expert], list[int]] = {}
    for place, neuron in enumerate(neurons):
        places.setdefault((neuron.layer, neuron.expert), []).append(place)
    return {Site(*at): found for at, found in places.items()}


class RankedNeuron(NamedTuple):
    """One line of a ranking."""

    neuron: Neuron
    score: float
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class NeuronRanking(Sequence[RankedNeuron]):
    """Neurons in order of score, best first.

    Args:
        records: the ranked neurons, with the tokens that each one writes most strongly.
        source: the concept that they were ranked for.
        token_id: the first token of the source, as the model wrote it.
        activations: the activation `o` of each neuron where the source is predicted (mean over its occurrences), same order.
        scorer: how the score was computed; of contributions, `approximate` where a norm or scale stands between a W_out and
            the residual stream, `unchecked` where that could not be tried.
        captions: the caption of each picture.

    Raises:
        RequestError: if activations and records differ in number.

    Example:
        >>> ranking = NeuronRanking((RankedNeuron(Neuron(2, 7), 1.5, (" cat",)),), "cat", 11, (0.3,))
        >>> ranking[0].neuron, len(ranking)
        (Neuron(layer=2, unit=7, expert=None), 1)
    """

    records: tuple[RankedNeuron, ...]
    source: str
    token_id: int
    activations: tuple[float, ...]
    scorer: str = "contribution"
    captions: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(self.records) != len(self.activations):
            raise RequestError(
                "a ranking has one activation for each neuron",
                got=f"{len(self.records)} neurons, {len(self.activations)} activations",
            )

    @overload
    def __getitem__(self, index: int) -> RankedNeuron: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RankedNeuron, ...]: ...
    def __getitem__(self, index: int | slice) -> RankedNeuron | tuple[RankedNeuron, ...]:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[RankedNeuron]:
        return iter(self.records)

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """The neurons alone, best first."""
        return tuple(record.neuron for record in self.records)

    def head(self, k: int) -> NeuronRanking:
        """The best k neurons, as a ranking."""
        return replace(self, records=self.records[:k], activations=self.activations[:k])

    def __str__(self) -> str:
        lines = [f"{'neuron':<14} {'score':>9} {'o':>9}  top tokens"]
        for (neuron, score, tokens), activation in zip(self.records, self.activations, strict=True):
            shown = " ".join(repr(token) for token in tokens)
            lines.append(f"{neuron!s:<14} {score:>9.4f} {activation:>9.4f}  {shown}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The ranking as plain JSON values."""
        records = [
            {"neuron": str(neuron), "score": score, "activation": activation, "tokens": list(tokens)}
            for (neuron, score, tokens), activation in zip(self.records, self.activations, strict=True)
        ]
        return {
            "source": self.source,
            "token_id": self.token_id,
            "scorer": self.scorer,
            "captions": list(self.captions),
            "neurons": records,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NeuronRanking:
        """The inverse of `to_dict`.

        Raises:
            RequestError: if a field is missing or of the wrong form.
        """
        try:
            records = tuple(
                RankedNeuron(Neuron.parse(r["neuron"]), float(r["score"]), tuple(map(str, r["tokens"])))
                for r in values["neurons"]
            )
            activations = tuple(float(r["activation"]) for r in values["neurons"])
            return cls(
                records,
                str(values["source"]),
                int(values["token_id"]),
                activations,
                str(values["scorer"]),
                tuple(map(str, values["captions"])),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RequestError(
                "not a neuron ranking", got=f"{type(error).__name__}: {error}", expected="what NeuronRanking.save wrote"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the ranking as JSON; the file appears whole or not at all.

        Raises:
            OutputError: if it cannot be written.
        """
        write_text(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> NeuronRanking:
        """Read what `save` wrote.

        Raises:
            RequestError: if the file is missing or is not a ranking.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except RequestError as error:
            error.where = path
            raise
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RequestError(
                "cannot read a neuron ranking",
                where=path,
                got=str(error),
                expected="a JSON file written by NeuronRanking.save",
            ) from error

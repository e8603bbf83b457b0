"""The study of Pan et al., sections 2.4 and 3, on a model and pictures of one's own: each analysis by name, or all of them.

Whatever takes long is written down as it comes, in one folder; the same call goes on where it stopped, and several processes
share the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from mmedit.analysis.picture_sets import PictureSet
from mmedit.analysis.survey import METHODS, Surveyed, survey
from mmedit.errors import ModelError, RequestError
from mmedit.evaluation.journal import Journal
from mmedit.files import make_folder
from mmedit.models.fingerprint import fingerprint
from mmedit.models.images import image_digest
from mmedit.models.vlm import VisionLanguageModel
from mmedit.processes import ALONE, Processes
from mmedit.requests import Prompt, as_prompt

T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """Rows under a head, one CSV file."""

    name: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass
class Section:
    """What one analysis found.

    Args:
        name: of the analysis.
        title: of its section.
        text: what was done, in a sentence or two.
        tables: its tables.
        figures: PNG files with what they show.
        panels: rows of small pictures, each with a heading.
        refused: why it could not be done with this model.
    """

    name: str
    title: str
    text: str
    tables: list[Table] = field(default_factory=list)
    figures: list[tuple[Path, str]] = field(default_factory=list)
    panels: list[tuple[str, list[tuple[str, Any]]]] = field(default_factory=list)
    refused: str | None = None


@dataclass
class Study:
    """One model and one picture set, and the folder that everything about them goes to.

    Args:
        vlm: the model.
        pictures: the picture set.
        folder: made if it is not there.
        methods: scorers to compare.
        k: neurons to keep for each concept.
        prompt: as for `vlm.caption`.
        seed: of everything that is drawn.
        editor: for `swap`, a name of `mmedit.editors.EDITORS`.
        hparams: of the editor: a shipped name, a file, a mapping, `auto`, or None for those shipped for the model, or else `auto`.
        encoder: for BERTScore and MoverScore, a folder or Hub id of an encoder.
        bleurt: a folder or Hub id of a BLEURT checkpoint.
        processes: of which this one does its share.
        progress: show bars.
    """

    vlm: VisionLanguageModel
    pictures: PictureSet
    folder: Path
    methods: tuple[str, ...] = (*METHODS, "random")
    k: int = 1000
    prompt: str | Prompt | None = None
    seed: int = 0
    editor: str = "MMNeurons"
    hparams: str | Mapping[str, Any] | None = None
    encoder: str | None = None
    bleurt: str | None = None
    processes: Processes = ALONE
    progress: bool = False

    def __post_init__(self) -> None:
        self.folder = make_folder(self.folder)
        if self.vlm.architecture.image_token_id is None or self.vlm.has_encoder:
            self.methods = tuple(method for method in self.methods if method != "attribution")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the results of every analysis."""
        prompt = as_prompt(self.prompt)
        digests = [image_digest(picture.image) for picture in self.pictures.pictures]
        return {
            "model": fingerprint(self.vlm), "pictures": digests, "methods": list(self.methods), "k": self.k,
            "prompt": [prompt.text, prompt.prefix, *filter(None, [prompt.system])], "seed": self.seed,
        }  # fmt: skip

    @cached_property
    def survey(self) -> list[Surveyed]:
        """The survey of all pictures, that of every process."""
        with self.journal("survey") as journal:
            found = survey(
                self.vlm, self.pictures.pictures, methods=self.methods, k=self.k, prompt=self.prompt, journal=journal,
                processes=self.processes, seed=self.seed,
            )  # fmt: skip
            own = self.bar(found, "survey", len(self.processes.share(self.pictures.pictures)))
        found_by_all = self.processes.gather([one.to_dict() for one in own])
        return sorted(map(Surveyed.from_dict, found_by_all), key=lambda one: one.number)

    def journal(self, name: str, **settings: Any) -> Journal:
        """The journal of one analysis."""
        return Journal(self.folder / "journals", name, {**self.settings, **settings}, self.processes.index)

    def bar(self, found: Iterable[T], name: str, total: int) -> list[T]:
        """All of it, with a progress bar on stderr."""
        return list(
            tqdm(found, desc=name, total=total, unit="picture", disable=not self.progress or not self.processes.main)
        )

    def path(self, name: str) -> Path:
        """A file of the folder."""
        return self.folder / name

    def run(self, names: Sequence[str] | None = None) -> list[Section]:
        """Carry out analyses and write their tables, figures and the report.

        Args:
            names: keys of `ANALYSES`; all when None.

        Returns:
            Their sections; in other processes than the main one nothing is written.

        Raises:
            RequestError: for an unknown name.
            ModelError: if a single analysis is asked for and the model does not allow it; RequestError: if the pictures do not.
            OutputError: if the folder holds the results of another study.
        """
        from mmedit.analysis.analyses import ANALYSES
        from mmedit.analysis.report import write_report, write_tables

        chosen = list(ANALYSES) if names is None else list(names)
        unknown = [name for name in chosen if name not in ANALYSES]
        if unknown:
            raise RequestError("no such analysis", got=unknown[0], expected=f"one of {', '.join(ANALYSES)}, all")
        sections = [_carry_out(self, name, ANALYSES[name], alone=len(chosen) == 1) for name in chosen]
        if self.processes.main:
            for section in sections:
                write_tables(self, section)
            write_report(self, sections)
        return sections


Analysis = Callable[[Study], Section]


def _carry_out(study: Study, name: str, analysis: Analysis, alone: bool) -> Section:
    """One analysis; among others, what the model or the pictures do not allow is said in the report and stops nothing."""
    try:
        return analysis(study)
    except (ModelError, RequestError) as error:
        if alone:
            raise
        return Section(name, name, "", refused=str(error))

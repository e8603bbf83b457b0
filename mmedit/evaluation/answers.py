"""Free generation for probes, and what the unedited model says, kept on disk.

The key is the content: every weight and setting of the model, the picture's pixels, the prompt's whole text. A model that
was changed in any way, live patches included, never finds another model's answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from mmedit.cases import Probe
from mmedit.models.fingerprint import fingerprint
from mmedit.models.images import image_digest
from mmedit.models.vlm import MAX_NEW_TOKENS, Generation, VisionLanguageModel


class Bar(Protocol):
    """What of a tqdm bar is used here."""

    def update(self, n: int = 1) -> Any: ...


def batches_of(probes: Sequence[Probe], batch_size: int) -> Iterator[list[int]]:
    """Numbers of probes in batches: pictures apart from text-only prompts, those with prompts of like length together."""
    for with_image in (True, False):
        chosen = [i for i, probe in enumerate(probes) if (probe.image is not None) == with_image]
        chosen.sort(key=lambda i: len(probes[i].prompt.text))
        yield from (chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size))


def model_inputs(probes: Sequence[Probe]) -> tuple[list[Any] | None, list[Any]]:
    """The pictures and prompts of a batch, as `vlm.inputs` takes them."""
    images = None if probes[0].image is None else [probe.image for probe in probes]
    return images, [probe.prompt for probe in probes]


def free_answers(
    vlm: VisionLanguageModel, probes: Sequence[Probe], batch_size: int = 8, bar: Bar | None = None
) -> list[Generation]:
    """What the model, as it is now, says to each probe.

    Args:
        vlm: the model.
        probes: what it is asked; the same question about the same picture is asked once.
        batch_size: probes per batch.
        bar: told how many are done.
    """
    first: dict[Any, int] = {}
    same = [first.setdefault((_name(probe.image), probe.prompt), i) for i, probe in enumerate(probes)]
    asked = sorted(set(same))
    answers: dict[int, Generation] = {}
    for batch in batches_of([probes[i] for i in asked], batch_size):
        numbers = [asked[i] for i in batch]
        given = vlm.generate_batch(vlm.inputs(*model_inputs([probes[i] for i in numbers])))
        answers.update(zip(numbers, given, strict=True))
        if bar is not None:
            bar.update(len(numbers))
    if bar is not None:
        bar.update(len(probes) - len(asked))
    return [answers[i] for i in same]


def _name(image: Any) -> Any:
    """Equal for the same picture within one list of probes."""
    return None if image is None else str(image) if isinstance(image, str | os.PathLike) else id(image)


class Baselines:
    """What the unedited model says, asked once per model, prompt and picture, in this run and in later ones.

    Args:
        vlm: the model, with nothing live on it.
        folder: where to keep the answers; `MMEDIT_CACHE`, or `mmedit` in the user's cache folder, when None; False for
            nowhere.
    """

    def __init__(self, vlm: VisionLanguageModel, folder: str | Path | bool | None = None) -> None:
        self.vlm, self.generated = vlm, 0
        place = None if folder is False else default_folder() if folder in (None, True) else Path(str(folder))
        self.mark = fingerprint(vlm)
        self._file = place / "answers.sqlite" if place and self.mark else None

    def answers(self, probes: Sequence[Probe], batch_size: int = 8, bar: Bar | None = None) -> list[Generation]:
        """What the unedited model says to each probe; asks it only what is not known yet."""
        digests: dict[Any, str] = {None: "no picture"}
        for probe in probes:
            if (name := _name(probe.image)) not in digests:
                digests[name] = image_digest(probe.image)
        keys = [self._key(probe, digests[_name(probe.image)]) for probe in probes]
        known = self._read(set(keys))
        new = [i for i, key in enumerate(keys) if key not in known]
        made = free_answers(self.vlm, [probes[i] for i in new], batch_size, bar) if new else []
        self.generated += len({keys[i] for i in new})
        fresh = {keys[i]: generation for i, generation in zip(new, made, strict=True)}
        self._write(fresh)
        if bar is not None:
            bar.update(len(probes) - len(new))
        return [(known | fresh)[key] for key in keys]

    def _key(self, probe: Probe, picture: str) -> str:
        text = self.vlm.render(probe.prompt, probe.image is not None)
        content = f"{self.mark}\n{picture}\n{MAX_NEW_TOKENS}\n{text}"
        return hashlib.blake2b(content.encode(), digest_size=20).hexdigest()

    def _read(self, keys: set[str]) -> dict[str, Generation]:
        if self._file is None or not self._file.is_file():
            return {}
        found = {}
        try:
            with closing(_connect(self._file)) as database:
                for key in keys:
                    row = database.execute("SELECT text, ids FROM answers WHERE key = ?", (key,)).fetchone()
                    if row is not None:
                        found[key] = Generation(row[0], tuple(json.loads(row[1])))
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._give_up(error)
            return {}
        return found

    def _write(self, fresh: dict[str, Generation]) -> None:
        if self._file is None or not fresh:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            rows = [(key, generation.text, json.dumps(generation.ids)) for key, generation in fresh.items()]
            with closing(_connect(self._file)) as database, database:
                database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        warnings.warn(f"baselines are not kept: {self._file}: {error}", stacklevel=4)
        self._file = None


def default_folder() -> Path:
    """Where answers are kept: `MMEDIT_CACHE`, or `mmedit` in the user's cache folder."""
    chosen = os.environ.get("MMEDIT_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmedit"


def _connect(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=60)
    database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, ids TEXT NOT NULL)")
    return database

"""A folder of fetched pictures with a manifest: what each address gave, so that none is asked twice."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from mmedit.data.fetch import Answer, NoAnswer
from mmedit.errors import OutputError
from mmedit.files import replacing, write_text
from mmedit.models.images import load_image

Record: TypeAlias = dict[str, Any]
"""A line of the manifest: index, url, caption, outcome (`picture`, or why there is none), and file, sha256 or detail."""
MANIFEST = "manifest.jsonl"
FORMATS = {"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "WEBP": ".webp"}
"""The kinds of picture that are opened. Pillow knows more, and opens some of them with other programs."""
MAX_PIXELS = 50_000_000
GONE = "photo_unavailable"
"""In the address of the picture to which Flickr redirects when a photo was deleted (openimages/dataset#9)."""


class PictureStore:
    """The pictures that a folder holds of one sample of a list.

    Args:
        folder: an existing folder.
        urls: the list.
        seed: of the sample.

    Raises:
        OutputError: if the folder holds another sample, or cannot be written.
    """

    def __init__(self, folder: Path, urls: Sequence[str], seed: int) -> None:
        self.folder, self.pictures, self.skipped = folder, dict[int, Record](), Counter[str]()
        digest = hashlib.sha256("\n".join(urls).encode(errors="surrogatepass")).hexdigest()
        header = {"manifest": "mmedit-sbu", "version": 1, "urls_sha256": digest, "seed": seed}
        first, *records = _read(folder / MANIFEST) or [header]
        if first != header:
            what, do = "this folder holds another sample", "choose another folder"
            raise OutputError(what, where=folder / MANIFEST, got=first, expected=header, do=do)
        latest = {record.get("index"): record for record in records}  # the last line about an address counts
        self.known: dict[int, Record] = {i: r for i, r in latest.items() if isinstance(i, int) and self._holds(r)}
        self._owner = {r["sha256"]: i for i, r in self.known.items() if "sha256" in r}
        write_text(folder / MANIFEST, "".join(map(_line, [header, *self.known.values()])))

    def judge(self, index: int, url: str, caption: str, answer: Answer | NoAnswer) -> Record:
        """The record of what an address gave; if that is a picture, it is saved."""
        record: Record = {"index": index, "url": url, "caption": caption}
        kind = picture_kind(answer.data) if isinstance(answer, Answer) else answer
        if isinstance(kind, NoAnswer):
            return record | {"outcome": kind.reason, "detail": kind.detail}
        assert isinstance(answer, Answer)
        record["sha256"] = hashlib.sha256(answer.data).hexdigest()
        twin = self._owner.setdefault(record["sha256"], index)
        if twin != index:
            self._drop(twin, f"the bytes of address {index} too")
            return record | {"outcome": "placeholder", "detail": f"the bytes of address {twin} too"}
        if GONE in urlsplit(answer.url).path:
            return record | {"outcome": "placeholder", "detail": f"redirected to {answer.url}"}
        file = f"{index:07d}{kind}"
        with replacing(self.folder / file) as part:
            part.write_bytes(answer.data)
        return record | {"outcome": "picture", "file": file}

    def add(self, records: Iterable[Record]) -> None:
        """Write records down, and count them."""
        for record in records:
            self._write(record)
            self.count(record)

    def count(self, record: Record) -> None:
        """Take a record that is written down into this run's sample."""
        if record["outcome"] == "picture":
            self.pictures[record["index"]] = record
        else:
            self.skipped[record["outcome"]] += 1

    def _drop(self, index: int, detail: str) -> None:
        """Take a picture back whose bytes have come a second time."""
        record = self.known[index]
        if record["outcome"] == "picture":
            (self.folder / record["file"]).unlink(missing_ok=True)
            self._write({k: v for k, v in record.items() if k != "file"} | {"outcome": "placeholder", "detail": detail})
            if self.pictures.pop(index, None):
                self.skipped["placeholder"] += 1

    def _write(self, record: Record) -> None:
        self.known[record["index"]] = record
        path = self.folder / MANIFEST
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            do = "free some space and run this again: it goes on from here"
            raise OutputError("cannot write this file", where=path, got=str(error), do=do) from error

    def _holds(self, record: Record) -> bool:
        """Whether a record can be relied on: it says how it went, and its picture is there, whole."""
        if record.get("outcome") != "picture":
            return isinstance(record.get("outcome"), str)
        name = str(record.get("file"))
        path = self.folder / name
        if not re.fullmatch(r"\d{7,}\.(jpg|png|gif|webp)", name) or not path.is_file():
            return False
        return hashlib.sha256(path.read_bytes()).hexdigest() == record.get("sha256")


def picture_kind(data: bytes) -> str | NoAnswer:
    """A picture's file name suffix, if it can be decoded whole and is not too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its limit is above ours
            with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
                if image.width * image.height > MAX_PIXELS:
                    return NoAnswer("too large", f"{image.width}x{image.height} pixels")
                load_image(image)
                return FORMATS[str(image.format)]
    except Image.DecompressionBombError as error:
        return NoAnswer("too large", str(error))
    except UnidentifiedImageError:
        return NoAnswer("not a picture", f"none of {', '.join(FORMATS)}")
    except Exception as error:  # Pillow's readers raise anything on broken data
        return NoAnswer("not a picture", str(getattr(error, "got", None) or error)[:200])


def _read(path: Path) -> list[Record]:
    """The lines of a manifest; a line that a kill cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"

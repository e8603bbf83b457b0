"""SBU Captions (Ordonez et al., NIPS 2011): a sample of its pictures, from the list of their addresses.

The data set is a list of a million Flickr addresses with captions; the pictures have to be fetched, and many are gone.
It comes as `SBU_captioned_photo_dataset_urls.txt` with `SBU_captioned_photo_dataset_captions.txt`, or as
`sbu-captions-all.json`, from https://www.cs.rice.edu/~vo9/sbucaptions/.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from mmedit.data.fetch import Limits, fetch_in_order
from mmedit.data.picture_store import PictureStore, Record
from mmedit.errors import ImageError, RequestError
from mmedit.files import make_folder

PATIENCE = 20
"""So many unreachable addresses in a row mean that this computer's network is down."""


class SbuPicture(NamedTuple):
    """A picture on disk, the caption that its owner gave it, and where it is from."""

    path: Path
    caption: str
    url: str


@dataclass(frozen=True)
class SbuReport:
    """What a download gave."""

    asked: int
    """Pictures asked for."""
    pictures: tuple[SbuPicture, ...]
    """The pictures, in the sample's order."""
    skipped: dict[str, int] = field(default_factory=dict)
    """For each reason why an address of the sample gave no picture, how many."""

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())) or "none"
        return f"{len(self.pictures)} of {self.asked} pictures; skipped {sum(self.skipped.values())}: {reasons}"


def read_sbu_list(list_file: str | Path) -> tuple[list[str], list[str]]:
    """The addresses and captions of SBU Captions.

    Args:
        list_file: `…_urls.txt`, beside which lies `…_captions.txt`; or the JSON file with `image_urls` and `captions`.

    Returns:
        The addresses and as many captions, in the file's order.

    Raises:
        RequestError: if a file is missing or of another form, or there is not one caption for each address.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sbu-captions-all.json"
        >>> _ = path.write_text('{"image_urls": ["http://a/1.jpg"], "captions": ["A dog."], "user_ids": ["7"]}')
        >>> read_sbu_list(path)
        (['http://a/1.jpg'], ['A dog.'])
    """
    path = Path(list_file)
    try:
        if path.suffix == ".json":
            lists = json.loads(path.read_text(encoding="utf-8"))
            urls, captions = lists["image_urls"], lists["captions"]
        elif path.name.endswith("urls.txt"):
            urls, captions = _lines(path), _lines(path.with_name(path.name.removesuffix("urls.txt") + "captions.txt"))
        else:
            expected = "a file whose name ends in urls.txt or .json"
            raise RequestError("not a list of SBU Captions", where=path, got=path.name, expected=expected)
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RequestError("cannot read this list of SBU Captions", where=path, got=got, do="check the file") from error
    for texts in (urls, captions):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RequestError("not a list of SBU Captions", where=path, expected="lists of texts")
    if not urls or len(urls) != len(captions):
        got = f"{len(urls)} addresses and {len(captions)} captions"
        raise RequestError("not a list of SBU Captions", where=path, got=got, expected="one caption for each address")
    return urls, captions


def download_sbu(
    list_file: str | Path,
    folder: str | Path,
    n: int = 1000,
    seed: int = 0,
    threads: int = 4,
    limits: Limits | None = None,
) -> SbuReport:
    """Download a random sample of SBU Captions; what a broken-off run has is kept, and the next goes on from there.

    The list is walked through in a random order until n pictures are there. Skipped, counted and not asked for again are
    addresses that are dead, redirect to Flickr's picture for deleted photos, or give something that is no picture, too
    large, too slow, or the same bytes as another address (as placeholders do; both are skipped). Each is a line of `manifest.jsonl`.

    Args:
        list_file: as for `read_sbu_list`.
        folder: where the pictures and the manifest go; it holds one sample, and more of it when n is raised.
        n: how many pictures.
        seed: of the random order.
        threads: how many addresses are asked at a time; they are nearly all one host's, so leave it small.
        limits: times, sizes and retries for one address; the default `Limits` when None.

    Returns:
        The pictures with their captions, and what was skipped; fewer pictures than n if the list ends first.

    Raises:
        RequestError: if the list cannot be read, or n or threads is below 1.
        OutputError: if the folder cannot be written or holds another sample.
        ImageError: if 20 addresses in a row are unreachable, or the list gives no picture.

    Example:
        >>> download_sbu("SBU_captioned_photo_dataset_urls.txt", "sbu/").pictures[0].caption  # doctest: +SKIP
    """
    if n < 1:
        raise RequestError("a sample holds at least one picture", got=f"n={n}", expected="1 or more")
    urls, captions = read_sbu_list(list_file)
    order = sample_order(len(urls), seed)
    store = PictureStore(make_folder(folder), urls, seed)
    fetched = fetch_in_order((urls[i] for i in order if i not in store.known), limits, threads)
    unreachable: list[Record] = []  # since the last answer; not written down until the next one
    with closing(fetched), tqdm(total=n, desc="pictures", disable=None, leave=False) as bar:
        for i in order:
            if i in store.known:
                store.count(store.known[i])
            else:
                record = store.judge(i, urls[i], captions[i], next(fetched))
                unreachable.append(record)
                if record["outcome"] != "unreachable":
                    store.add(unreachable)
                    unreachable = []
                elif len(unreachable) >= PATIENCE:
                    do = "check the network and run this again: it goes on from here"
                    raise ImageError(f"{PATIENCE} addresses in a row cannot be reached", where=urls[i], got=record["detail"], do=do)  # fmt: skip
            bar.update(len(store.pictures) - bar.n)
            if len(store.pictures) == n:
                break
    skipped = dict(store.skipped + Counter(record["outcome"] for record in unreachable))
    if not store.pictures:
        raise ImageError("no address of this list gives a picture", where=list_file, got=skipped)
    pictures = tuple(SbuPicture(store.folder / r["file"], r["caption"], r["url"]) for r in store.pictures.values())
    return SbuReport(n, pictures, skipped)


def sample_order(n: int, seed: int) -> list[int]:
    """The numbers below n in a random order; only `random()` is promised to stay the same in later Pythons."""
    generator = random.Random(seed)
    keys = [generator.random() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)


def _lines(path: Path) -> list[str]:
    """A text file's lines; unlike `splitlines`, this leaves the rarer line separators in the captions alone."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in file]

"""Where the parts of a checkpoint are: its own folder and that of its vision tower, on disk or from the Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mmedit.errors import ModelError
from mmedit.models.checkpoint_files import WEIGHTS

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NO_ANSWER = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)
SMALL = ["*.json", "tokenizer.model"]
BY_PREFERENCE = ["model*.safetensors", "pytorch_model*.bin"]  # never both: they are the same weights twice


def config_of(source: str, revision: str | None) -> dict[str, Any]:
    """What the config.json of a folder or Hub id holds; nothing if it cannot be read."""
    try:
        path = Path(source) / "config.json"
        if not Path(source).is_dir():
            path = Path(hf_hub_download(source, "config.json", revision=revision))
    except NO_ANSWER:
        return {}
    return json_of(path)


def json_of(path: Path) -> dict[str, Any]:
    """What a JSON file holds by name; nothing if it cannot be read."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def folder_of(source: str, revision: str | None) -> Path:
    """The folder itself, or that of a Hub id in the local cache, with its small files and its weights in one format.

    Raises:
        ModelError: if it cannot be downloaded.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        for weights in BY_PREFERENCE:
            folder = Path(snapshot_download(source, revision=revision, allow_patterns=[*SMALL, weights, f"{weights}.index.json"]))  # fmt: skip
            if any((folder / name).exists() for name in WEIGHTS):
                break
    except NO_ANSWER as error:
        got = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError("cannot get this checkpoint from the Hub", where=source, got=got, do="check the name and the network, or download it and give its folder") from error  # fmt: skip
    return folder


def tower_folder(named: str | None, given: str | Path | None, folder: Path) -> Path:
    """The folder of the vision tower.

    Args:
        named: what config.json calls it.
        given: what the user calls it instead, a folder or a Hub id.
        folder: of the checkpoint; it may hold the tower.

    Raises:
        ModelError: if it is not there.
    """
    name = str(given or named or "")
    places = [Path(name)] if given else [folder / name, Path(name)]
    found = next((place for place in places if name and place.is_dir()), None)
    if found is None and name and HUB_ID.fullmatch(name):
        found = folder_of(name, None)
    if found is None:
        raise ModelError(
            "this LLaVA's vision tower is not here", where=folder, got=repr(name), expected="a folder or a Hub id such as openai/clip-vit-large-patch14",
            do="name it: mmedit.load(…, vision_tower=…), mmedit convert … --vision-tower …",
        )  # fmt: skip
    return found

"""What MMEdit's format cannot hold of a case, under a key of our own that other loaders pass by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mmedit.cases import EditCase, Probe
from mmedit.data.records import Record
from mmedit.errors import DataError
from mmedit.requests import EditRequest, Prompt, as_prompt

KEY = "mmedit"
VERSION = 1


def values_of(case: EditCase, place: Callable[[Any], str]) -> dict[str, Any]:
    """A whole case as plain JSON values.

    Args:
        case: the case.
        place: gives the path under which a picture is kept.
    """
    request = case.request
    return {
        "version": VERSION,
        "id": case.id,
        "images": [{"image": place(image)} for image in request.images],
        "source": request.source,
        "target": request.target,
        "prompt": None if request.prompt is None else asdict(as_prompt(request.prompt)),
        "probes": [
            {
                "kind": probe.kind,
                "image": None if probe.image is None else place(probe.image),
                "prompt": asdict(probe.prompt),
                "answer": probe.answer,
                "objects": None if probe.objects is None else list(probe.objects),
                "label": probe.label,
            }
            for probe in case.probes
        ],
    }


def case_of(record: Record) -> EditCase:
    """The case that stands under our key of a record.

    Raises:
        DataError: if it is not one, or of a later version.
        RequestError: if it is one that cannot be.
    """
    own = record.child(KEY)
    if own.value("version") != VERSION:
        raise DataError("written by a later version", where=own.where, got=own.value("version"), expected=VERSION, do="update mmedit")  # fmt: skip
    images = [image.picture("image") for image in own.children("images")]
    source = None if own.value("source") is None else own.text("source")
    prompt = None if own.value("prompt") is None else _prompt(own)
    probes = tuple(_probe(probe) for probe in own.children("probes"))
    return EditCase(own.filled("id"), EditRequest(images, source, own.text("target"), prompt), probes)


def _prompt(record: Record) -> Prompt:
    prompt = record.child("prompt")
    no_space = "no_space" in prompt and prompt.value("no_space") is True  # files of before have none
    system = prompt.text("system") if "system" in prompt else ""  # nor this
    return Prompt(prompt.text("text"), prompt.text("prefix"), no_space, system)


def _probe(record: Record) -> Probe:
    objects = record.value("objects")
    if objects is not None and not (isinstance(objects, list) and all(isinstance(noun, str) for noun in objects)):
        raise DataError("objects are nouns", where=record.place("objects"), got=type(objects).__name__, expected="a list of words, or null")  # fmt: skip
    return Probe(
        record.text("kind"),  # type: ignore[arg-type]  # Probe checks it
        None if record.value("image") is None else record.picture("image"),
        _prompt(record),
        None if record.value("answer") is None else record.text("answer"),
        None if objects is None else tuple(objects),
        record.text("label"),
    )

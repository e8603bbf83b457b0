"""MMKE-Bench's format (Du et al., ICLR 2025, arXiv 2502.19870): MMEdit's fields, and questions about the new knowledge."""

from __future__ import annotations

from mmedit.cases import EditCase, Probe
from mmedit.data.mmedit_format import edit_and_probes, hops
from mmedit.data.records import Record
from mmedit.errors import DataError
from mmedit.requests import Prompt

TYPES = ("entity_level", "visual_knowledge", "user_specific")


def cases_of(record: Record) -> list[EditCase]:
    """The case of one record of the parts `entity`, `visual` or `user`.

    `rel` questions have no picture (the bench's T-Rel), `m_rel` ones the edit's picture (I-Rel), and on the rephrased one
    the same, or `image_rephrase_question`, is asked (I-Gen).
    """
    if (kind := record.filled("knowledge_type")) not in TYPES:
        raise DataError("no such type of knowledge", where=record.place("knowledge_type"), got=kind[:80], expected=", ".join(TYPES))  # fmt: skip
    visual = kind == "visual_knowledge"
    request, probes = edit_and_probes(record)
    image, related = record.picture("image"), record.picture("image_rephrase", True)
    for number in ("",) if visual else ("_1", "_2"):
        about, answer = Prompt(record.asked(f"m_rel{number}")), _answer(record, "m_rel", number)
        again = Prompt(record.asked("image_rephrase_question")) if visual else about
        probes += (
            Probe("question", None, Prompt(record.filled(f"rel{number}")), _answer(record, "rel", number)),
            Probe("question", image, about, answer, label=record.text("image")),
            Probe("related", related, again, answer, label=record.text("image_rephrase")),
        )
    one_hop = "image" if kind == "entity_level" else "one_hop_img"
    return [EditCase(record.id, request, probes + hops(record, one_hop))]


def _answer(record: Record, name: str, number: str) -> str:
    """An answer, whose key is spelt in two ways."""
    return record.filled(f"{name}_ans{number}" if f"{name}_ans{number}" in record else f"{name}{number}_ans")

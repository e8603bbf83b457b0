"""VLKEB's format (Huang et al., NeurIPS 2024, arXiv 2403.07350): MMEdit's fields, and questions about what follows.

Nothing is asked in a template. `port_new` holds either questions of several steps about the edit (`eval_multihop.json`), or,
in `eval_edit_onehop.json`, each a second edit and a question that needs both.
"""

from __future__ import annotations

from mmedit.cases import EditCase, Probe
from mmedit.data.mmedit_format import edit_and_probes, hops
from mmedit.data.records import Record
from mmedit.requests import EditRequest, Prompt


def cases_of(record: Record) -> list[EditCase]:
    """The case of one record, and one more for each second edit.

    VLKEB makes the second edit on top of the first, without a picture or, as here, with the record's. What needs both is
    asked with the second; it can only be right while both are live, as in a sequential run.
    """
    request, probes = edit_and_probes(record)
    ports = record.children("port_new") if "port_new" in record else []
    if not ports or "port_type" in ports[0]:
        return [EditCase(record.id, request, probes + hops(record))]
    return [EditCase(record.id, request, probes)] + [_one_hop(record, port, i) for i, port in enumerate(ports)]


def _one_hop(record: Record, port: Record, number: int) -> EditCase:
    image, label = record.picture("image"), record.text("image")
    prompt, target = Prompt(port.asked("port_edit_q")), port.filled("port_edit_a")
    question, answer = Prompt(port.asked("port_q")), port.filled("port_a")
    probes = (Probe("edit", image, prompt, target, label=label), Probe("portability", image, question, answer, label=label))  # fmt: skip
    return EditCase(f"{record.id}.{number}", EditRequest(image, None, target, prompt), probes)

"""ComprehendEdit's format (Ma et al., AAAI 2025, arXiv 2412.12821): questions of eight kinds from five data sets.

EasyEdit's reader and the authors' own take `locality_prompt` for `locality_ground_truth` too; here the answer is the answer.
The lists of neighbours (`img_topk`, `ori_rt_img_topk`, …), from which they compute KGI and KPI, are not read.
"""

from __future__ import annotations

from mmedit.cases import EditCase, Probe
from mmedit.data.mmedit_format import TEMPLATE
from mmedit.data.records import Record
from mmedit.errors import DataError
from mmedit.requests import EditRequest, Prompt

TEMPLATES = {
    "gqa": TEMPLATE,
    "tallyqa": "Question: {} Answer with a number. Short answer:",
    "vsr": "Question: Is this description true or false? Description: {} Short answer:",
    "textvqa": TEMPLATE,
    "mathvista": "{} Short answer:",
}
"""What the questions of each source are asked in."""


def cases_of(record: Record) -> list[EditCase]:
    """The case of one record of `ComprehendEdit_train.json` or `…_test.json`; one with an empty `answer` is skipped.

    Later versions of the test set have another rephrasing (`T_G_qs`) and questions that follow from the edit, with the
    picture (`port_M_qs`) and without (`port_T_qs`).
    """
    source = record.filled("source").lower()
    if source not in TEMPLATES:
        raise DataError("no such source", where=record.place("source"), got=source[:80], expected=", ".join(TEMPLATES))
    target, image, label = record.filled("answer"), record.picture("image"), record.text("image")

    def ask(key: str) -> Prompt:
        return Prompt(record.asked(key, TEMPLATES[source]))

    kept, asked = record.picture("multimodal_locality_image"), record.asked("multimodal_locality_prompt", TEMPLATE)
    answers = {key: record.answer(f"{key}_ground_truth") for key in ("locality", "multimodal_locality")}
    probes = [
        Probe("edit", image, ask("question"), target, label=label),
        Probe("rephrased", image, ask("rephrase"), target, label=label),
        Probe("text_only", None, Prompt(record.filled("locality_prompt")), answers["locality"]),
        Probe("unrelated", kept, Prompt(asked), answers["multimodal_locality"], label=record.text("multimodal_locality_image")),
    ]  # fmt: skip
    if "T_G_qs" in record and record.answer("T_G_qs"):
        probes.append(Probe("rephrased", image, ask("T_G_qs"), record.filled("T_G_ans"), label=label))
    for key, shown in (("port_M_qs", image), ("port_T_qs", None)):
        if key in record and record.answer(key):
            probes.append(
                Probe("portability", shown, ask(key), record.filled("port_ans"), label=label if shown else "")
            )
    return [EditCase(record.id, EditRequest(image, None, target, ask("question")), tuple(probes))]

"""MMEdit's format (Cheng et al., EMNLP 2023, arXiv 2310.08475), which VLKEB and MMKE-Bench extend.

As EasyEdit's `VQADataset` and `CaptionDataset` read it: E-VQA asks every question about a picture in a template, E-IC those
about unrelated pictures only; text-only questions are asked as they are.
"""

from __future__ import annotations

from mmedit.cases import EditCase, Probe
from mmedit.data import own_format
from mmedit.data.records import Record, Skipped
from mmedit.requests import EditRequest, Prompt

TEMPLATE = "Question: {} Short answer:"
FIELDS = ("src", "pred", "rephrase", "alt", "image", "image_rephrase", "loc", "loc_ans", "m_loc", "m_loc_q", "m_loc_a")
HOPS = ("1-hop", "2-hop", "3-hop", "4-hop")


def cases_of(record: Record) -> list[EditCase]:
    """The case of one record of E-VQA (its `src` ends with a question mark) or E-IC.

    Skipped is a record of E-VQA with any empty field, and one of E-IC where `alt`, or what is asked, is empty.
    """
    if own_format.KEY in record:
        return [own_format.case_of(record)]
    if not record.text("src").strip().endswith("?"):
        return [EditCase(record.id, *edit_and_probes(record, "{}", TEMPLATE))]
    for key in FIELDS:
        if key in record and record.answer(key) is None:
            raise Skipped(f"`{key}` is empty")
    return [EditCase(record.id, *edit_and_probes(record, TEMPLATE, TEMPLATE))]


def edit_and_probes(
    record: Record, template: str = "{}", locality: str = "{}"
) -> tuple[EditRequest, tuple[Probe, ...]]:
    """The request and the five probes of the fields that all of MMEdit's family have.

    Args:
        record: with the fields above; `pred`, the answer of some other model, is not needed.
        template: what to ask about the edit's picture in.
        locality: what to ask about the unrelated picture in.
    """
    target, image, related = record.filled("alt"), record.picture("image"), record.picture("image_rephrase", True)
    prompt, rephrased = (Prompt(record.asked(key, template)) for key in ("src", "rephrase"))
    unrelated = Prompt(record.asked("m_loc_q", locality))
    shown = {key: record.text(key) for key in ("image", "image_rephrase", "m_loc")}
    return EditRequest(image, None, target, prompt), (
        Probe("edit", image, prompt, target, label=shown["image"]),
        Probe("rephrased", image, rephrased, target, label=shown["image"]),
        Probe("related", related, prompt, target, label=shown["image_rephrase"]),
        Probe("text_only", None, Prompt(record.filled("loc")), record.answer("loc_ans")),
        Probe("unrelated", record.picture("m_loc"), unrelated, record.answer("m_loc_a"), label=shown["m_loc"]),
    )


def hops(record: Record, image_key: str = "image") -> tuple[Probe, ...]:
    """Questions whose answers follow from the edit, in one to four steps: `port_new` of VLKEB and MMKE-Bench.

    Args:
        record: may lack `port_new`. With `hop` among its options only the first question of so many steps is kept, and a
            record without one is skipped, as VLKEB's loader does.
        image_key: the picture that is asked about.
    """
    kept = HOPS if record.options.hop is None else HOPS[record.options.hop - 1 : record.options.hop]
    found = []
    for port in record.children("port_new") if "port_new" in record else []:
        if (steps := port.filled("port_type")) in kept:
            asked = port.child("Q&A")
            label = f"{record.text(image_key)}, {steps}"
            image, prompt = record.picture(image_key), Prompt(asked.asked("Question"))
            found.append(Probe("portability", image, prompt, asked.filled("Answer"), label=label))
    if record.options.hop is not None and not found:
        raise Skipped(f"no {kept[0]} question")
    return tuple(found if record.options.hop is None else found[:1])

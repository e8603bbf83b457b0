"""The sections of the study in which the model is changed: noise on located rows, and swaps."""

from __future__ import annotations

from mmedit.analysis.figures import draw_shares, save
from mmedit.analysis.perturb import Perturbed, perturb, word_lost
from mmedit.analysis.study import Section, Study, Table
from mmedit.analysis.swap import plan_swaps, swap
from mmedit.analysis.tables import INTERVAL, cells
from mmedit.evaluation.intervals import estimate
from mmedit.evaluation.metrics import changed_words


def noise(study: Study) -> Section:
    """Tables 5 and 11."""
    text = "Gaussian noise (mean 0, sigma 0.5) on the rows of a concept's five best neurons, against noise on five random neurons (Tables 5 and 11)."
    section = Section("perturb", "Perturbation", text)
    with study.journal("perturb") as journal:
        found = perturb(
            study.vlm,
            study.pictures.pictures,
            prompt=study.prompt,
            seed=study.seed,
            journal=journal,
            processes=study.processes,
        )
        own = study.bar(found, "perturbation", 0)
    rows = sorted(
        (Perturbed(**row) for row in study.processes.gather([vars(one) for one in own])), key=lambda row: row.number
    )
    if not rows:
        return section
    lost = word_lost(rows)
    changed = {
        name: estimate([float(getattr(r, name) != r.caption) for r in rows], [r.number for r in rows]) for name in lost
    }
    both = {"concept no longer said": lost, "caption changed": changed}
    section.tables.append(
        Table(
            "perturb",
            ("what", "noise on", *INTERVAL),
            [(what, where, *cells(e)) for what, of in both.items() for where, e in of.items()],
        )
    )
    head = ("picture", "concept", "neurons", "caption", "noise on the located neurons", "noise on random neurons")
    section.tables.append(
        Table(
            "perturb-captions",
            head,
            [(r.label or r.number, r.word, " ".join(r.neurons), r.caption, r.located, r.random) for r in rows],
        )
    )
    path = study.path("perturb.png")
    if study.processes.main:
        save(draw_shares(both, "share of concepts", "Noise on five rows"), path)
        section.figures.append((path, "what noise does"))
    return section


def swaps(study: Study) -> Section:
    """Tables 6, 7 and 12."""
    from mmedit.editors import EDITORS
    from mmedit.hparams import hparams_for

    text = "Each of the commonest concepts swapped for others, from one picture, and what other pictures are called then (Tables 6, 7 and 12)."
    section = Section("swap", "Swaps", text)
    if not study.processes.main:
        return section
    chosen = study.hparams or hparams_for(study.vlm.name, study.editor)
    editor = EDITORS[study.editor].from_hparams(chosen, study.vlm)
    plans = plan_swaps(study.survey, study.pictures.objects)
    with study.journal("swap", editor=repr(editor)) as journal:
        found = study.bar(
            swap(study.vlm, study.pictures.pictures, plans, editor, prompt=study.prompt, journal=journal), "swaps", 0
        )
    for kind, edited in (("the edit's own picture", True), ("other pictures", False)):
        judged = [row for row in found if row.edited is edited and row.right is not None]
        if judged:
            e = estimate([float(bool(row.right)) for row in judged], [f"{row.source} {row.target}" for row in judged])
            section.tables.append(
                Table(f"swap-{'own' if edited else 'other'}", ("pictures", *INTERVAL), [(kind, *cells(e))])
            )
    head = ("source", "target", "picture", "edit picture", "before", "after", "changed words", "swapped")
    rows = [
        (r.source, r.target, r.label or r.number, r.edited, r.before, r.after, _changed(r.before, r.after), r.right)
        for r in found
    ]
    section.tables.append(Table("swap", head, rows))
    return section


def _changed(before: str, after: str) -> str:
    return " ".join(word for word, differs in changed_words(before, after) if differs)

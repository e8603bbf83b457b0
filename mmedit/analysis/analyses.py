"""Each analysis of the study as a section: what it computes, its tables and its figures."""

from __future__ import annotations

from collections.abc import Mapping

from mmedit.analysis.cross_image import cross_image_invariance
from mmedit.analysis.figures import draw_cross_image, draw_curves, draw_heatmap, draw_layers, save
from mmedit.analysis.focus_study import Focused, focus_numbers, focus_panel, focus_summary
from mmedit.analysis.interventions import noise, swaps
from mmedit.analysis.layers import unique_neurons_per_layer
from mmedit.analysis.region_invariance import Shuffled, mean_kept, region_invariance
from mmedit.analysis.specificity import concept_neuron_heatmap, specificity
from mmedit.analysis.study import Analysis, Section, Study, Table
from mmedit.analysis.tables import INTERVAL, by_number, cells, named
from mmedit.analysis.tokens import token_table
from mmedit.evaluation.intervals import Estimate

N_PANELS = 3  # pictures whose focus is shown


def layers(study: Study) -> Section:
    """Fig. 2."""
    section = Section(
        "layers",
        "Layers",
        "Different neurons among the top k of any concept of any picture, by decoder layer (Fig. 2).",
    )
    numbers, rows = range(study.vlm.architecture.n_layers), []
    for method in study.methods:
        counts = unique_neurons_per_layer(study.survey, numbers, method)
        rows += [(named(method), k, layer, n) for k, by_layer in counts.items() for layer, n in by_layer.items()]
        path = study.path(f"layers-{method}.png")
        if study.processes.main and method != "random":
            save(draw_layers(counts, f"{named(method)}, {len(study.survey)} pictures"), path)
            section.figures.append((path, named(method)))
    section.tables.append(Table("layers", ("method", "k", "layer", "unique neurons"), rows))
    return section


def tokens(study: Study) -> Section:
    """Tables 2 and 9."""
    rows = [(*row[:-1], " ".join(map(repr, row.tokens))) for row in token_table(study.survey)]
    text = "The five best neurons of every concept by each method, with their scores and the ten tokens that they write most strongly (Tables 2 and 9)."
    head = ("picture", "caption", "concept", "method", "rank", "neuron", "score", "top tokens")
    return Section("tokens", "Top tokens", text, [Table("tokens", head, rows)])


def sensitivity(study: Study) -> Section:
    """Table 3."""
    from mmedit.analysis.text_metrics import BertScore, Bleurt, MoverScore, mean_sensitivity
    from mmedit.analysis.text_metrics.sensitivity import Metric

    text = "How much the ten tokens of each of a concept's ten best neurons mean the concept: mean over concepts, then pictures (Table 3)."
    section = Section("sensitivity", "Sensitivity", text)
    metrics: dict[str, Metric] = {}
    if study.encoder:
        metrics = {"BERTScore": BertScore(study.encoder), "MoverScore": MoverScore(study.encoder)}
    if study.bleurt:
        metrics["BLEURT"] = Bleurt(study.bleurt)
    if not metrics:
        section.refused = (
            "not computed: BERTScore and MoverScore need --encoder, BLEURT needs --bleurt (a folder or Hub id)"
        )
        return section
    rows = []
    for method in study.methods:
        concepts = [[(c.word, c.rankings[method].tokens) for c in surveyed.concepts] for surveyed in study.survey]
        rows.append((named(method), *(mean_sensitivity(concepts, metric) for metric in metrics.values())))
    caption = f"Encoder: {study.encoder or 'none'}; BLEURT: {study.bleurt or 'none'}."
    section.tables.append(Table("sensitivity", ("method", *metrics), rows, caption))
    return section


def region(study: Study) -> Section:
    """Fig. 3, Table 10."""
    text = "The image tokens are shuffled where they enter the language model; share of the top k neurons that stay, over concepts that both captions name (Eq. 6, Fig. 3, Table 10)."
    section = Section("region-invariance", "Region invariance", text)
    methods = [method for method in study.methods if method != "random"]
    with study.journal("region-invariance") as journal:
        found = region_invariance(
            study.vlm,
            study.pictures.pictures,
            methods=methods,
            prompt=study.prompt,
            seed=study.seed,
            journal=journal,
            processes=study.processes,
        )
        own = study.bar(found, "region invariance", len(study.processes.share(study.pictures.pictures)))
    rows = sorted(
        (Shuffled(**one) for one in study.processes.gather([vars(one) for one in own])), key=lambda one: one.number
    )
    curves = {method: mean_kept(rows, method) for method in methods}
    section.tables.append(by_number("region-invariance", "k", curves))
    section.tables.append(
        Table(
            "region-invariance-captions",
            ("picture", "caption", "with shuffled image tokens"),
            [(r.number, r.caption, r.shuffled) for r in rows],
        )
    )
    path = study.path("region-invariance.png")
    if study.processes.main and any(curves.values()):
        save(draw_curves(curves, "neurons, k", "share that stays", "Image tokens shuffled"), path)
        section.figures.append((path, "share of the top k neurons that stay"))
    return section


def cross_image(study: Study) -> Section:
    """Figs. 4 and 6."""
    text = "Share of a concept's top k neurons that N pictures of it have in common, a mean over concepts (Eq. 7, Figs. 4 and 6)."
    found = {
        method: cross_image_invariance(study.survey, method, seed=study.seed)
        for method in study.methods
        if method != "random"
    }
    rows = [(named(method), k, n, *cells(e)) for method, of in found.items() for (k, n), e in of.items()]
    section = Section(
        "cross-image", "Cross-image invariance", text, [Table("cross-image", ("method", "k", "N", *INTERVAL), rows)]
    )
    path = study.path("cross-image.png")
    if study.processes.main and rows:
        save(draw_cross_image(found, "Neurons common to N pictures of a concept"), path)
        section.figures.append((path, "share of neurons common to N pictures"))
    return section


def specific(study: Study) -> Section:
    """Table 4, Figs. 5 and 7."""
    text = "S@k: share of a concept's top k neurons that are not among another concept's; related concepts stand in the same caption, random ones in others (Eq. 8 in our reading, Table 4). The heatmap shows what each concept's best neuron contributes to each concept (Figs. 5 and 7)."
    section = Section("specificity", "Specificity", text)
    found = {
        method: specificity(study.survey, method, seed=study.seed) for method in study.methods if method != "random"
    }
    rows = [
        (named(m), kind, k, *cells(e))
        for m, kinds in found.items()
        for kind, of in kinds.items()
        for k, e in of.items()
    ]
    section.tables.append(Table("specificity", ("method", "against", "k", *INTERVAL), rows))
    if study.processes.main:
        heat = concept_neuron_heatmap(study.vlm, study.pictures.pictures, study.survey, prompt=study.prompt)
        head = ("concept", *map(str, heat.neurons))
        section.tables.append(
            Table("heatmap", head, [(w, *map(float, row)) for w, row in zip(heat.words, heat.scores, strict=True)])
        )
        path = study.path("heatmap.png")
        save(draw_heatmap(heat, "Best neuron of each concept"), path)
        section.figures.append((path, "contribution of each concept's best neuron to each concept"))
    return section


def focus(study: Study) -> Section:
    """Tables 1 and 8."""
    text = "Mean activation of the top k neurons at the image positions, over the picture, and where it is above its 95th percentile (Tables 1 and 8). Where the objects' regions are known: how often the greatest value falls on the object (pointing game), and the share of the activation there, against the object's share of the area, which a map without focus would have."
    section = Section("focus", "Focus", text)
    if study.pictures.scenes:
        with study.journal("focus") as journal:
            found = focus_numbers(
                study.vlm, study.pictures, study.survey, prompt=study.prompt, journal=journal, processes=study.processes
            )
            own = [vars(row) for row in study.bar(found, "focus", 0)]
        summary = focus_summary([Focused(**row) for row in study.processes.gather(own)])
        head = (
            "method",
            "k",
            "pointing game",
            "low",
            "high",
            "mass on object",
            "low",
            "high",
            "area of object",
            "concepts",
        )
        rows = [
            (named(m), k, *cells(hit)[:3], *cells(mass)[:3], area.value, area.n)
            for (m, k), (hit, mass, area) in sorted(
                summary.items(), key=lambda item: (study.methods.index(item[0][0]), item[0][1])
            )
        ]
        section.tables.append(Table("focus", head, rows))
        for name, which, label in (
            ("pointing", 0, "pointing-game accuracy"),
            ("mass", 1, "share of activation on the object"),
        ):
            curves = {
                m: {k: of[which] for (mm, k), of in sorted(summary.items(), key=lambda i: i[0][1]) if mm == m}
                for m in study.methods
            }
            if study.processes.main:
                path = study.path(f"focus-{name}.png")
                save(
                    draw_curves(
                        curves, "neurons, k", label, f"{label}; the object's share of the area is {_area(summary):.2f}"
                    ),
                    path,
                )
                section.figures.append((path, label))
    if study.processes.main:
        for surveyed in study.survey[:N_PANELS]:
            image = study.pictures.pictures[surveyed.number].image
            for concept in surveyed.concepts[:1]:
                for method in study.methods:
                    panel = focus_panel(study.vlm, image, concept, method, prompt=study.prompt)
                    section.panels.append((f"{concept.word!r} in {surveyed.caption!r}: {named(method)}", list(panel)))
    return section


def _area(summary: Mapping[tuple[str, int], tuple[Estimate, Estimate, Estimate]]) -> float:
    return next((area.value for _, _, area in summary.values()), float("nan"))


ANALYSES: dict[str, Analysis] = {
    "layers": layers, "tokens": tokens, "sensitivity": sensitivity, "region-invariance": region, "cross-image": cross_image,
    "specificity": specific, "focus": focus, "perturb": noise, "swap": swaps,
}  # fmt: skip
"""Every analysis by the name that the command line uses, in the report's order."""

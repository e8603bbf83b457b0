"""The paper's study: each analysis against a slower way to the same number, and the whole as one run, cut off and split."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import mmedit
from mmedit.analysis.cross_image import cross_image_invariance, shared
from mmedit.analysis.focus import grid, heatmap, image_activations, mask, masked, on_object, overlay
from mmedit.analysis.focus_study import as_seen, focus_numbers, focus_summary
from mmedit.analysis.layers import unique_neurons_per_layer
from mmedit.analysis.perturb import noise, perturb, word_lost
from mmedit.analysis.picture_sets import PictureSet, picture_set
from mmedit.analysis.region_invariance import kept, mean_kept, region_invariance, shuffled_image_tokens
from mmedit.analysis.specificity import concept_neuron_heatmap, specificity
from mmedit.analysis.study import Study
from mmedit.analysis.survey import Concept, Ranked, Surveyed, survey
from mmedit.analysis.swap import plan_swaps, swap
from mmedit.analysis.tokens import token_table
from mmedit.cli import app
from mmedit.errors import MmeditError, ModelError, OutputError, RequestError
from mmedit.evaluation.journal import Journal
from mmedit.neuron import Neuron
from mmedit.processes import Processes

N, K = 4, 60
law = settings(deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def world() -> PictureSet:
    return picture_set(["iconworld"], n=N)


@pytest.fixture(scope="module")
def found(trained: mmedit.VisionLanguageModel, world: PictureSet) -> list[Surveyed]:
    return list(survey(trained, world.pictures, methods=("contribution", "activation", "attribution", "random"), k=K))


def test_a_survey_is_what_locating_gives(
    vlm: mmedit.VisionLanguageModel, world: PictureSet, found: list[Surveyed]
) -> None:
    for surveyed, picture in list(zip(found, world.pictures, strict=True))[:2]:
        assert surveyed.caption == vlm.caption(picture.image)[0]
        for method in ("contribution", "activation", "attribution"):
            rankings = mmedit.locate_nouns(vlm, [picture.image], scorer=method, k=K)[0]
            first = {ranking.source.casefold(): ranking for ranking in reversed(rankings)}
            assert {c.word.casefold() for c in surveyed.concepts} == set(first)
            for concept in surveyed.concepts:
                ranking, ranked = first[concept.word.casefold()], concept.rankings[method]
                assert ranked.neurons == ranking.neurons and ranked.tokens == tuple(r.tokens for r in ranking[:10])
                assert ranked.scores == tuple(record.score for record in ranking)


def test_a_survey_survives_json_interruption_and_sharing(vlm: mmedit.VisionLanguageModel, world: PictureSet, found: list[Surveyed], tmp_path: Path) -> None:  # fmt: skip
    assert [Surveyed.from_dict(json.loads(json.dumps(one.to_dict()))) for one in found] == found
    options: dict[str, Any] = {"methods": ("contribution",), "k": 5}
    whole = list(survey(vlm, world.pictures, **options))
    with Journal(tmp_path, "survey", {}) as journal:
        run = survey(vlm, world.pictures, journal=journal, **options)
        next(run), next(run)
        run.close()
    with Journal(tmp_path, "survey", {}) as journal:
        assert list(survey(vlm, world.pictures, journal=journal, **options)) == whole
        assert len(list(journal.lines())) == N
    halves = [list(survey(vlm, world.pictures, processes=Processes(i, 2), **options)) for i in (0, 1)]
    assert sorted(halves[0] + halves[1], key=lambda one: one.number) == whole


def test_unique_neurons_are_counted_once(found: list[Surveyed]) -> None:
    counts = unique_neurons_per_layer(found, range(6), "contribution", ks=[3, 20, 10**6])
    assert list(counts) == [3, 20]  # the rankings do not reach a million
    for k, by_layer in counts.items():
        neurons = {n for s in found for c in s.concepts for n in c.rankings["contribution"].neurons[:k]}
        assert by_layer == {layer: sum(n.layer == layer for n in neurons) for layer in range(6)}


NEURONS = st.lists(st.integers(0, 30), min_size=10, max_size=10, unique=True).map(lambda us: [Neuron(0, u) for u in us])


@law
@given(NEURONS, NEURONS, st.integers(1, 10))
def test_shares_are_shares(a: list[Neuron], b: list[Neuron], k: int) -> None:
    assert shared([a, a, a], k) == 1 and shared([a, b], k) == shared([b, a], k)
    assert shared([a, b], k) == sum(n in b[:k] for n in a[:k]) / k >= shared([a, b, a[::-1]], k)


def named(number: int, **words: list[int]) -> Surveyed:
    concepts = tuple(
        Concept(w, 0, 0, {"m": Ranked(tuple(Neuron(0, u) for u in us), (), ())}) for w, us in words.items()
    )
    return Surveyed(number, "", "", concepts)


def test_invariance_over_pictures_and_specificity_of_known_rankings() -> None:
    rows = [named(0, cat=[1, 2], dog=[3, 4]), named(1, cat=[1, 2]), named(2, cat=[2, 9], kite=[1, 2])]
    invariance = cross_image_invariance(rows, "m", ks=[1, 2, 50], ns=[2, 3, 4])
    assert set(invariance) == {(1, 2), (2, 2), (1, 3), (2, 3)}
    assert invariance[2, 3].value == 0.5 and invariance[1, 3].value == 0
    found = specificity(rows[:1], "m", ks=[1, 2])
    assert found["related"][2].value == 1 and "random" not in found
    both = specificity([named(0, cat=[1, 2], dog=[1, 5])], "m", ks=[1, 2])["related"]
    assert (both[1].value, both[2].value) == (0, 0.5)
    apart = specificity([named(0, cat=[1, 2]), named(1, kite=[1, 2])], "m", ks=[2])
    assert apart["random"][2].value == 0 and "related" not in apart


def layer_input(vlm: mmedit.VisionLanguageModel, image: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the first decoder layer, and which positions are the picture's."""
    inputs, seen = vlm.inputs(image), []
    layer = next(vlm.architecture.layers.children())
    hook = layer.register_forward_pre_hook(lambda m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True)  # fmt: skip
    with torch.inference_mode():
        vlm.model(**inputs)
    hook.remove()
    return seen[0], inputs["input_ids"] == vlm.architecture.image_token_id


def test_shuffling_moves_image_tokens_and_nothing_else(vlm: mmedit.VisionLanguageModel, world: PictureSet) -> None:
    images = [picture.image for picture in world.pictures[:2]]
    plain, at_image = layer_input(vlm, images)
    with shuffled_image_tokens(vlm, 3):
        mixed, _ = layer_input(vlm, images)
        captions = vlm.caption(images)
    with shuffled_image_tokens(vlm, 3):
        again, _ = layer_input(vlm, images)
    with shuffled_image_tokens(vlm, 4):
        other, _ = layer_input(vlm, images)
    assert torch.equal(mixed, again) and not torch.equal(mixed, other)
    assert torch.equal(plain[~at_image], mixed[~at_image])
    for row in range(2):
        a, b = plain[row][at_image[row]], mixed[row][at_image[row]]
        assert not torch.equal(a, b) and torch.equal(a.sort(0).values, b.sort(0).values)
    assert len(captions) == 2 and torch.equal(layer_input(vlm, images)[0], plain)
    hooks = [len(m._forward_pre_hooks) for m in vlm.model.modules()]
    with pytest.raises(KeyboardInterrupt), shuffled_image_tokens(vlm, 0):
        raise KeyboardInterrupt
    assert [len(m._forward_pre_hooks) for m in vlm.model.modules()] == hooks


@pytest.mark.parametrize("name", ["iconworld-llava", "iconworld-instructblip", "iconworld-mplug-owl2"])
def test_shuffling_is_felt_while_the_model_generates(name: str, world: PictureSet) -> None:
    """InstructBLIP generates with its language model alone: a hook on the whole would see nothing."""
    from mmedit.trace import Trace

    vlm, records = mmedit.load(name), []
    for seed in (None, 3):
        with shuffled_image_tokens(vlm, seed) if seed else nullcontext(), Trace(vlm.architecture) as trace:
            vlm.generate([world.pictures[0].image])
            records.append(trace.at(mmedit.Site(5), 0, 0))
    assert not torch.allclose(records[0], records[1], atol=1e-3)


def test_region_invariance_compares_what_both_captions_name(vlm: mmedit.VisionLanguageModel, world: PictureSet) -> None:
    (one,) = region_invariance(vlm, world.pictures[:1], methods=["contribution"], ks=[5, 20])
    common = {w for w in one.caption.split() if w in one.shuffled.split()}
    assert one.kept["contribution"] and set(one.kept["contribution"]) <= common
    assert all(0 <= share <= 1 for shares in one.kept["contribution"].values() for share in shares.values())
    same = named(0, cat=[1, 2], dog=[3, 4])
    assert kept(same, named(0, cat=[2, 1], boat=[3, 4]), ["m"], [1, 2]) == {"m": {"cat": {"1": 0.0, "2": 1.0}}}
    assert mean_kept([one], "contribution")[5].n == 1


def test_noise_is_gaussian_and_leaves_no_trace(vlm: mmedit.VisionLanguageModel, world: PictureSet) -> None:
    neurons = [Neuron(layer, unit) for layer in range(6) for unit in range(40)]
    patch = noise(vlm, neurons, 0.5, seed=1)
    values = torch.cat([rows for _, rows in patch.deltas.values()])
    assert values.shape == (240, 128) and abs(values.std().item() - 0.5) < 0.01 and abs(values.mean().item()) < 0.01
    assert noise(vlm, neurons, 0.5, seed=1).digest == patch.digest != noise(vlm, neurons, 0.5, seed=2).digest
    rows = list(perturb(vlm, world.pictures[:2], sigma=0.0))
    assert rows and all(row.located == row.random == row.caption for row in rows)
    lost = word_lost(list(perturb(vlm, world.pictures[:2], sigma=3.0, n_neurons=20)))
    assert lost["located"].value > lost["random"].value  # located neurons matter, as many random ones hardly do


def test_activations_on_the_picture_are_what_enters_w_out(vlm: mmedit.VisionLanguageModel, world: PictureSet) -> None:
    image, neurons = world.pictures[0].image, [Neuron(5, 7), Neuron(0, 3), Neuron(5, 1)]
    maps = image_activations(vlm, image, neurons)
    inputs, seen = vlm.inputs(image), {}
    handles = [
        vlm.architecture.w_out(n.site).module.register_forward_pre_hook(
            lambda m, args, n=n: seen.update({n: args[0][0]})
        )  # type: ignore[misc]
        for n in neurons
    ]
    with torch.inference_mode():
        vlm.model(**inputs)
    for handle in handles:
        handle.remove()
    at_image = (inputs["input_ids"] == vlm.architecture.image_token_id)[0]
    for neuron, values in zip(neurons, maps, strict=True):
        np.testing.assert_allclose(values.ravel(), seen[neuron][at_image, neuron.unit].numpy(), rtol=1e-5)


@law
@given(st.integers(0, 10**6))
def test_a_map_on_an_object(seed: int) -> None:
    rng = np.random.default_rng(seed)
    region = rng.random((12, 10)) < 0.4
    region[0, 0], region[0, 1] = True, False
    flat = on_object(np.full((12, 10), 2.0), region)
    assert flat.mass == flat.area == region.mean()
    inside = on_object(region.astype(float), region)
    assert inside.hit and inside.mass == 1.0
    values = rng.random((12, 10))
    found = on_object(values, region)
    assert 0 <= found.mass <= 1 and found.hit == region[np.unravel_index(values.argmax(), values.shape)]
    assert on_object(5 * values + 3, region).mass == pytest.approx(found.mass)
    assert mask(values).mean() == pytest.approx(0.05, abs=0.01)


def test_maps_lie_over_the_picture_as_the_model_sees_it(vlm: mmedit.VisionLanguageModel, world: PictureSet) -> None:
    image = world.pictures[0].image
    assert np.abs(np.asarray(as_seen(vlm, image), int) - np.asarray(image, int)).max() <= 1
    corner = np.zeros((1, 8, 8))
    corner[0, 0, 7] = 1
    values = heatmap(corner, 64, 64)
    assert (
        values.shape == (64, 64) and np.unravel_index(values.argmax(), values.shape)[0] < 8 <= 56 <= values[0].argmax()
    )
    assert overlay(image, values).size == masked(image, mask(values)).size == (64, 64)


def test_models_without_a_grid_are_refused(vlm: mmedit.VisionLanguageModel) -> None:
    with pytest.raises(ModelError, match="not a grid"):
        grid(vlm, {}, 63)
    vlm.model.config.qformer_config = {}
    try:
        with pytest.raises(ModelError, match="made by queries"):
            grid(vlm, {}, 64)
    finally:
        del vlm.model.config.qformer_config
    assert grid(vlm, {}, 64) == (8, 8) and grid(vlm, {}, 16) == (4, 4)


def test_focus_rows_are_maps_on_regions(
    vlm: mmedit.VisionLanguageModel, world: PictureSet, found: list[Surveyed]
) -> None:
    rows = list(focus_numbers(vlm, world, found, ks=(1, 10)))
    row = next(r for r in rows if r.method == "contribution" and r.k == 10)
    concept = next(c for c in found[row.number].concepts if c.word == row.concept)
    maps = image_activations(vlm, world.pictures[row.number].image, concept.rankings["contribution"].neurons[:10])
    alone = on_object(heatmap(maps, 64, 64), world.regions(row.number)[row.concept])
    assert (row.hit, row.area) == (alone.hit, alone.area) and row.mass == pytest.approx(alone.mass, rel=1e-4)
    assert set(focus_summary(rows)) == {
        (m, k) for m in ("contribution", "activation", "attribution", "random") for k in (1, 10)
    }


def test_heatmap_of_concepts_has_the_contributions(vlm: mmedit.VisionLanguageModel, world: PictureSet, found: list[Surveyed]) -> None:  # fmt: skip
    heat = concept_neuron_heatmap(vlm, world.pictures, found, n_concepts=3, n_pictures=1)
    word = heat.words[0]
    number = next(s.number for s in found if any(c.word.casefold() == word for c in s.concepts))
    ranking = mmedit.locate_word(vlm, [world.pictures[number].image], word, k=3072)
    scores = {record.neuron: record.score for record in ranking}
    np.testing.assert_allclose(heat.scores[0], [scores[neuron] for neuron in heat.neurons], rtol=1e-4)


def test_swaps_are_planned_and_judged(vlm: mmedit.VisionLanguageModel) -> None:
    world = picture_set(["iconworld"], n=12)
    found = list(survey(vlm, world.pictures, methods=("contribution",), k=5))
    plans = plan_swaps(found, world.objects, n_sources=1, n_targets=2, n_tests=2)
    assert plans[0].source in (world.objects or ()) and plans[0].source not in plans[0].targets
    rows = list(swap(vlm, world.pictures, plans, mmedit.editors.MMNeurons.from_hparams("iconworld-llava"), cache=False))
    assert [row.edited for row in rows] == [True, False, False] * len(plans[0].targets)
    assert all(row.target in row.after.split() for row in rows if row.right)
    with pytest.raises(RequestError, match="too few concepts"):
        plan_swaps(found[:1])


def test_token_rows(found: list[Surveyed]) -> None:
    rows = list(token_table(found, 2))
    assert len(rows) == sum(len(s.concepts) for s in found) * 4 * 2
    assert rows[0].rank == 1 and rows[0].tokens == found[0].concepts[0].rankings["contribution"].tokens[0]


def test_a_user_s_own_pictures_are_sampled_in_order(tmp_path: Path) -> None:
    for i in range(8):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
    chosen = picture_set([str(tmp_path)], n=3, seed=1)
    names = [Path(picture.image).name for picture in chosen.pictures]
    assert len(names) == 3 and names == sorted(names) and chosen.regions(0) == {} and chosen.objects is None
    assert names == [Path(p.image).name for p in picture_set([str(tmp_path)], n=3, seed=1).pictures]


def tables(folder: Path) -> dict[str, list[list[str]]]:
    return {path.name: list(csv.reader(path.read_text().splitlines())) for path in sorted(folder.glob("*.csv"))}


def test_the_whole_study_goes_on_where_it_stopped(vlm: mmedit.VisionLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from mmedit.analysis import perturb as module

    world = picture_set(["iconworld"], n=8)
    sections = Study(vlm, world, tmp_path / "whole", k=20).run()
    assert [s.name for s in sections if s.refused] == ["sensitivity"]
    page = (tmp_path / "whole" / "report.html").read_text()
    words = re.sub(r"data:image/png;base64,[^\"]*", "", page).replace("http-equiv", "")
    assert page.count("data:image/png") > 20 and "http" not in words and ">nan<" not in words
    monkeypatch.setattr(module, "noise", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Study(vlm, world, tmp_path / "cut", k=20).run()
    monkeypatch.undo()
    monkeypatch.setenv("MMEDIT_CACHE", str(tmp_path / "cache"))
    Study(vlm, world, tmp_path / "cut", k=20).run()
    assert tables(tmp_path / "cut") == tables(tmp_path / "whole") and len(tables(tmp_path / "cut")) > 10
    with pytest.raises(OutputError, match="another seed"):
        Study(vlm, world, tmp_path / "cut", k=20, seed=1).run(["layers"])
    with pytest.raises(RequestError, match="no such analysis"):
        Study(vlm, world, tmp_path / "cut").run(["nothing"])


def test_two_processes_write_the_same_tables(tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2"])):
        command = [sys.executable, *launcher, "-m", "mmedit", "analyse", "region-invariance", "iconworld", "-n", "3", "-k", "40", "-o", str(tmp_path / name), "--method", "contribution"]  # fmt: skip
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    assert tables(tmp_path / "one") == tables(tmp_path / "two") and len(tables(tmp_path / "one")) == 2


def test_without_matplotlib_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    from mmedit.cli import main

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["mmedit", "analyse", "layers", "iconworld"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "mmedit-vlm[analysis]" in capfd.readouterr().err


def test_the_command_says_what_it_wrote(cat_file: Path, tmp_path: Path) -> None:
    """One analysis of one's own picture: its table as JSON and as CSV, its figures, the page; in words without --json."""
    pytest.importorskip("matplotlib")
    command = ["analyse", "layers", str(cat_file), "-k", "20", "--method", "contribution", "-o", str(tmp_path / "out")]
    told = json.loads(CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False).stdout)
    with (tmp_path / "out" / "layers.csv").open() as file:
        head, *rows = csv.reader(file)
    assert told["tables"]["layers"]["head"] == head
    assert [[str(cell) for cell in row] for row in told["tables"]["layers"]["rows"]] == rows
    largest = max(int(row[1]) for row in rows)
    counted = sum(int(row[3]) for row in rows if int(row[1]) == largest)
    assert largest <= counted <= 2 * largest, "a caption with one or two things"
    words = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    assert "Layers: layers.csv, layers-contribution.png" in words and told["report"] in words
    assert "<h1" in Path(told["report"]).read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["layer", "iconworld"], "no such analysis"),
        (["layers", "iconworld", "--method", "guess"], "no such scorer"),
        (["layers", "one.txt", "two.txt", "--sbu"], "one list file"),
        (["sensitivity", "iconworld", "-n", "1", "-k", "5", "--encoder", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_analysed_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(MmeditError, match=message):
        CliRunner().invoke(app, ["analyse", *options, "-o", str(tmp_path)], catch_exceptions=False)

"""Locating: what is recorded is what W_out sees, and scores are those of Eq. 2."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import mmedit
from mmedit.errors import RequestError
from mmedit.locate import rank, rank_given
from mmedit.models import top_tokens
from mmedit.models.readout import linear_norm
from mmedit.neuron import Neuron
from mmedit.nouns import find_nouns
from mmedit.scorers.contribution import Contribution, contribution
from mmedit.sightings import Sighting, sightings, source_sightings
from mmedit.trace import Trace

Pictures = list[tuple[Image.Image, str, Any]]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def teacher_forced(vlm: mmedit.VisionLanguageModel, image: Any, ids: tuple[int, ...]) -> tuple[Any, int]:
    """Inputs of one uncached forward over prompt and answer, and the position that predicts the first answer token."""
    inputs = vlm.inputs(image)
    start = inputs["input_ids"].shape[1]
    answer = torch.tensor([ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs, start - 1


@pytest.mark.parametrize("activation", ["w_out_input", "act_fn"])
def test_trace_records_what_an_uncached_forward_has(
    vlm: mmedit.VisionLanguageModel, pictures: Pictures, activation: Any
) -> None:
    image = pictures[0][0]
    with Trace(vlm.architecture, activation=activation) as trace:
        generation = vlm.generate(image)[0]
    inputs, first = teacher_forced(vlm, image, generation.ids)
    seen: dict[int, torch.Tensor] = {}
    handles = []
    for index, layer in enumerate(vlm.architecture.layers.children()):
        mlp: Any = layer.mlp
        if activation == "act_fn":
            handles.append(mlp.act_fn.register_forward_hook(lambda m, a, out, i=index: seen.update({i: out[0]})))
        else:
            handles.append(mlp.down_proj.register_forward_pre_hook(lambda m, a, i=index: seen.update({i: a[0][0]})))
    with torch.inference_mode():
        vlm.model(**inputs)
    for handle in handles:
        handle.remove()
    for site in trace.sites:
        recorded = trace.activations(site)
        assert recorded.shape == (len(generation.ids) + 1, 1, 512)
        assert torch.allclose(recorded[:, 0], seen[site.layer][first:], atol=1e-4)


def test_act_fn_is_w_out_input_without_the_up_factor(vlm: mmedit.VisionLanguageModel, pictures: Pictures) -> None:
    site = mmedit.Site(2)
    with Trace(vlm.architecture, [site]) as both, Trace(vlm.architecture, [site], "act_fn") as gate:
        vlm.generate(pictures[0][0])
    layer: Any = vlm.architecture.layers[site.layer]
    assert not torch.allclose(both.activations(site), gate.activations(site), atol=1e-2)
    ratio = both.activations(site) / gate.activations(site)
    assert layer.mlp.up_proj.weight.shape[0] == ratio.shape[-1]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_after_every_exit(
    vlm: mmedit.VisionLanguageModel, pictures: Pictures, error: type[BaseException] | None
) -> None:
    before = hooks(vlm.model)
    if error is None:
        mmedit.locate_nouns(vlm, pictures[0][0])
    else:

        def interrupt(picture: int, generation: Any) -> Any:
            assert hooks(vlm.model) > before
            raise error

        with pytest.raises(error):
            sightings(vlm, pictures[0][0], interrupt)
    assert hooks(vlm.model) == before


def test_a_trace_that_cannot_be_set_up_leaves_no_hook(vlm: mmedit.VisionLanguageModel) -> None:
    before = hooks(vlm.model)
    with (
        pytest.raises(RequestError, match="no such feed-forward layer"),
        Trace(vlm.architecture, [mmedit.Site(0), mmedit.Site(6)]),
    ):
        pass
    assert hooks(vlm.model) == before


def test_scores_are_the_brute_force_matrix(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest) -> None:
    """Q^l = o ⊙ (W_out · W_U) of Eq. 2, with the whole [d_ffn, vocab] matrix that we never form."""
    seen = source_sightings(vlm, request_of_cat.images, "cat")
    scores = Contribution().scores(vlm, seen)
    token = seen[0].occurrence.token_id
    for site, values in scores.items():
        layer: Any = vlm.architecture.layers[site.layer]
        full = layer.mlp.down_proj.weight.T @ vlm.model.lm_head.weight.T
        expected = seen[0].activations[site] * full[:, token]
        assert torch.allclose(values[0], expected, rtol=1e-5, atol=1e-5)
    flat = sorted(
        ((float(v), str(mmedit.Neuron(s.layer, i))) for s, values in scores.items() for i, v in enumerate(values[0])),
        reverse=True,
    )
    ranking = mmedit.locate_word(vlm, request_of_cat.images, "cat", k=20)
    assert [str(n) for n in ranking.neurons] == [name for _, name in flat[:20]]
    assert [r.score for r in ranking] == sorted((r.score for r in ranking), reverse=True)


def test_folded_scores_and_the_other_residual_terms_add_up_to_the_logit(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    seen = source_sightings(vlm, request_of_cat.images, "cat", final_norm="fold")[0]
    neurons = sum(float(values.sum()) for values in Contribution().scores(vlm, [seen]).values())
    inputs, first = teacher_forced(vlm, request_of_cat.images[0], seen.generation.ids)
    at, rest = first + seen.occurrence.index, []
    layers: Any = list(vlm.architecture.layers.children())
    handles = [layer.self_attn.register_forward_hook(lambda m, a, out: rest.append(out[0][0, at])) for layer in layers]
    handles.append(layers[0].register_forward_pre_hook(lambda m, a: rest.append(a[0][0, at])))
    with torch.inference_mode():
        logits = vlm.model(**inputs).logits[0, at]
        direction = seen.directions[mmedit.Site(0)]
        others = float(torch.stack(rest).sum(0) @ direction)
    for handle in handles:
        handle.remove()
    assert len(rest) == len(layers) + 1
    assert neurons + others == pytest.approx(float(logits[seen.occurrence.token_id]), abs=1e-3)


def test_the_gain_of_the_final_norm_is_exact(vlm: mmedit.VisionLanguageModel) -> None:
    x = torch.randn(128) * 3
    norm = vlm.architecture.final_norm
    assert norm is not None
    linear = linear_norm(norm, x)
    with torch.inference_mode():
        assert torch.allclose(linear.gain * x, norm(x), rtol=1e-5) and not linear.centred


def test_a_batch_gives_the_rankings_of_single_pictures(vlm: mmedit.VisionLanguageModel, pictures: Pictures) -> None:
    images = [picture for picture, _, _ in pictures[:6]]
    together = mmedit.locate_nouns(vlm, images, k=5, batch_size=4)
    for image, rankings in zip(images, together, strict=True):
        (alone,) = mmedit.locate_nouns(vlm, image, k=5)
        assert [r.neurons for r in alone] == [r.neurons for r in rankings]
        assert [r.source for r in alone] == [noun.text for noun in find_nouns(vlm.caption(image)[0])]


def test_several_pictures_are_averaged(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest) -> None:
    image = request_of_cat.images[0]
    mirrored = Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if " cat " not in vlm.caption(mirrored)[0]:
        pytest.skip("the model does not see a cat in the mirrored picture")
    one, two, both = (mmedit.locate_word(vlm, images, "cat", k=3072) for images in (image, mirrored, [image, mirrored]))
    scores = [{r.neuron: r.score for r in ranking} for ranking in (one, two, both)]
    assert all(scores[2][n] == pytest.approx((scores[0][n] + scores[1][n]) / 2, abs=1e-4) for n in scores[2])


def test_top_tokens_are_the_greatest_entries_of_the_projected_row(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    (neuron, _, tokens), *_ = mmedit.locate_word(vlm, request_of_cat.images, "cat", k=1, n_tokens=7)
    row = vlm.architecture.w_out(neuron.site).matrix[neuron.unit] @ vlm.architecture.w_u.T
    assert list(tokens) == [vlm.tokenizer.decode([t]) for t in row.topk(7).indices]


def test_the_tokens_of_many_neurons_are_those_of_each(
    vlm: mmedit.VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    neurons = [Neuron(layer, unit) for layer, unit in ((5, 3), (0, 7), (2, 1), (0, 2), (5, 0))]
    alone = [top_tokens.top_tokens(vlm, [neuron], 4)[0] for neuron in neurons]
    assert top_tokens.top_tokens(vlm, neurons, 4) == alone and len(set(alone)) == 5
    monkeypatch.setattr(top_tokens, "ROWS", 2)
    monkeypatch.setattr(top_tokens, "VALUES", 1)  # two at a time
    assert top_tokens.top_tokens(vlm, neurons, 4) == alone
    assert top_tokens.top_tokens(vlm, [], 4) == [] and top_tokens.top_tokens(vlm, neurons[:2], 0) == [(), ()]


def trees(vlm: mmedit.VisionLanguageModel, pictures: Pictures, n: int) -> list[Sighting]:
    """Where the model says `tree` about n pictures."""
    images = [picture for picture, caption, _ in pictures if " tree " in caption][:n]
    return source_sightings(vlm, images, "tree")


def test_a_ranking_has_the_activations_where_the_word_is_said(
    vlm: mmedit.VisionLanguageModel, pictures: Pictures
) -> None:
    seen = trees(vlm, pictures, 3)
    (ranking,) = rank(vlm, [seen], k=60)
    assert len(seen) > 1
    for (neuron, _, _), o in zip(ranking, ranking.activations, strict=True):
        assert o == pytest.approx(
            sum(float(s.activations[neuron.site][neuron.unit]) for s in seen) / len(seen), abs=1e-6
        )


def test_a_word_said_again_is_ranked_as_it_is_alone(vlm: mmedit.VisionLanguageModel, pictures: Pictures) -> None:
    _, _, things = pictures[1]
    seen = source_sightings(vlm, pictures[1][0], things[0].noun)[0]
    other = replace(seen, occurrence=replace(seen.occurrence, token_id=seen.occurrence.token_id - 1))
    words = [[other], [seen], [other], [seen]]
    alone = [rank(vlm, [word], k=20)[0] for word in words]
    assert [r.neurons for r in rank(vlm, words, k=20)] == [r.neurons for r in alone]
    assert alone[0].neurons != alone[1].neurons


def test_neurons_of_ones_own_choice_are_ranked_as_among_all(
    vlm: mmedit.VisionLanguageModel, pictures: Pictures
) -> None:
    seen = trees(vlm, pictures, 2)
    (among_all,) = rank(vlm, [seen], k=3072)
    chosen = [among_all[place].neuron for place in (700, 2, 3000, 2500, 40)]
    given = rank_given(vlm, seen, chosen, 4)
    assert given.neurons == tuple(chosen[place] for place in (1, 4, 0, 3, 2))
    assert given.activations == tuple(among_all.activations[place] for place in (2, 40, 700, 2500, 3000))
    for neuron, score, tokens in given:
        (line,) = (line for line in among_all if line.neuron == neuron)
        assert score == pytest.approx(line.score, abs=1e-6) and tokens == line.tokens[:4]
    assert rank_given(vlm, seen[:1], chosen[:1]).neurons == (chosen[0],)


def test_neurons_of_ones_own_choice_are_distinct_and_looked_at(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    seen = source_sightings(vlm, request_of_cat.images, "cat", layers=[1, 4])
    for wrong in ([], [Neuron(1, 3), Neuron(4, 3), Neuron(1, 3)], [Neuron(1, 3), Neuron(2, 3)]):
        with pytest.raises(RequestError, match=r"distinct[\s\S]*neurons of L1, L4"):
            rank_given(vlm, seen, wrong)


def test_a_hundred_neurons_with_ten_tokens_each_are_shown(vlm: mmedit.VisionLanguageModel, cat_file: Any) -> None:
    seen = source_sightings(vlm, cat_file, "cat")
    by_chance = mmedit.locate_word(vlm=vlm, images=cat_file, source="cat", scorer="random")
    nouns = mmedit.locate_nouns(vlm=vlm, images=cat_file, scorer="random")[0]
    assert {one.scorer for one in (by_chance, *nouns)} == {"random, seed 0"}
    for one in (by_chance, *nouns, *rank(vlm, [seen]), rank_given(vlm, seen, by_chance.neurons)):
        assert len(one) == 100 and {len(tokens) for _, _, tokens in one} == {10}


def test_layers_choose_where_to_look(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest) -> None:
    ranking = mmedit.locate_word(vlm, request_of_cat.images, "cat", k=8, layers=[1, 4])
    assert {neuron.layer for neuron in ranking.neurons} <= {1, 4}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"layers": [-1]}, "layers from 0 to 5"), ({"layers": [6]}, "layers from 0 to 5"), ({"layers": []}, "no such decoder layer"),
     ({"k": 0}, "at least one neuron"), ({"final_norm": "yes"}, "no such option"), ({"batch_size": 0}, "at least one picture")],
)  # fmt: skip
def test_wrong_options_are_refused(vlm: mmedit.VisionLanguageModel, cat_file: Any, options: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        mmedit.locate_word(vlm, cat_file, "cat", **options)


def test_rankings_survive_a_file(vlm: mmedit.VisionLanguageModel, cat_file: Any, tmp_path: Any) -> None:
    ranking = mmedit.locate_word(vlm, cat_file, "cat", k=7)
    ranking.save(tmp_path / "r.json")
    assert mmedit.NeuronRanking.load(tmp_path / "r.json") == ranking
    assert json.loads((tmp_path / "r.json").read_text())["neurons"][0]["neuron"] == str(ranking[0].neuron)


def test_contribution_is_linear_in_activation_and_direction() -> None:
    o, w_out, d = torch.randn(3, 5), torch.randn(5, 4), torch.randn(3, 4)
    assert torch.allclose(contribution(2 * o, w_out, d), 2 * contribution(o, w_out, d))
    assert torch.allclose(contribution(o, w_out, 3 * d), 3 * contribution(o, w_out, d))
    assert torch.allclose(contribution(o, w_out, d).sum(1), ((o @ w_out) * d).sum(1), atol=1e-5)

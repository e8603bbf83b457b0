"""Algorithm 1: the closed form is gradient descent, and the editor does what its hyperparameters say."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mmedit
from mmedit.editors import MMNeurons, MMNeuronsHparams
from mmedit.editors.mm_neurons import closed_form, gradient_descent
from mmedit.errors import RequestError
from mmedit.requests import CAPTION_PROMPT
from mmedit.testbed.benchmark import iconworld_cases

numbers = st.floats(-3, 3, allow_nan=False, allow_subnormal=False)


def magnifies_rounding(size: float, epochs: int, beta: float) -> bool:
    """Whether steps past 0 make rounding great: a step from r turns what is off the line by 1 − β/|r| of itself."""
    u, off = size, 1.0
    for _ in range(epochs):
        if u == 0 or off > 1e6:
            return True
        off *= max(1.0, abs(1 - beta / abs(u)))
        u += size - math.copysign(beta, u)
    return off > 1e6


@settings(max_examples=60, deadline=None)
@given(
    o=st.floats(-4, 4).filter(lambda x: abs(x) > 1e-3),
    direction=st.lists(numbers, min_size=3, max_size=6).filter(lambda v: math.hypot(*v) > 0.05),
    lr=st.floats(1e-4, 0.3), epochs=st.integers(1, 60), share=st.floats(0, 3), penalty=st.sampled_from(["l2", "squared_l2"]),
)  # fmt: skip
def test_closed_form_is_gradient_descent(
    o: float, direction: list[float], lr: float, epochs: int, share: float, penalty: str
) -> None:
    v0 = torch.tensor(direction, dtype=torch.float64)
    v1 = torch.linspace(-1, 1, len(v0), dtype=torch.float64)
    size = abs(o) * float((v0 - v1).norm())
    beta = share * size  # on either side of G
    assume(size > 1e-3)
    assume(penalty != "l2" or not magnifies_rounding(size, epochs, beta))
    activation = torch.tensor(o, dtype=torch.float64)
    quick, slow = (solve(activation, v0, v1, lr, epochs, beta, penalty) for solve in (closed_form, gradient_descent))
    assert torch.allclose(quick, slow, rtol=1e-6, atol=1e-6 * lr * size)


@pytest.mark.parametrize("penalty", ["l2", "squared_l2"])
@pytest.mark.parametrize("beta", [0.0, 1e-18, 1.0, 2.0])
@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_closed_form_is_gradient_descent_at_the_edges(epochs: int, beta: float, penalty: str) -> None:
    """No penalty or next to none; a first step that lands on the squared one's least loss; a norm as steep as the loss, G = β."""
    o, v0, v1 = torch.tensor([1.0, -0.7]), torch.tensor([2.0, 0.0]), torch.zeros(2)  # G is 2 and 1.4
    quick, slow = (solve(o, v0, v1, 0.5, epochs, beta, penalty) for solve in (closed_form, gradient_descent))  # type: ignore[arg-type]
    assert torch.allclose(quick, slow)


@given(st.integers(1, 5), st.integers(1, 40))
def test_neurons_are_solved_independently(k: int, epochs: int) -> None:
    torch.manual_seed(k)
    o, v0, v1 = torch.randn(k), torch.randn(8), torch.randn(8)
    together = closed_form(o, v0, v1, 0.01, epochs, 1.0)
    alone = torch.stack([closed_form(x, v0, v1, 0.01, epochs, 1.0) for x in o])
    assert torch.equal(together, alone)


def test_a_silent_neuron_is_left_alone() -> None:
    for penalty in ("l2", "squared_l2"):
        assert closed_form(torch.tensor(0.0), torch.ones(4), torch.zeros(4), 0.1, 10, 1.0, penalty).abs().max() == 0  # type: ignore[arg-type]


def test_a_beta_above_g_keeps_the_row_within_one_turn() -> None:
    """r stays inside (−lr·(β − G), lr·(β + G)) for ever."""
    v0, v1 = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    for epochs in range(1, 200):
        assert closed_form(torch.tensor(1.0), v0, v1, 0.1, epochs, 3.7).norm() <= 0.1 * (3.7 + 1.0) + 1e-6


def test_execute_leaves_the_model_untouched_and_apply_does_not(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    editor = MMNeurons.from_hparams("iconworld-llava")
    before = vlm.caption(request_of_cat.images)
    patch = editor.execute(vlm, request_of_cat)
    assert vlm.caption(request_of_cat.images) == before
    live = editor.apply(vlm, request_of_cat)
    after = vlm.caption(request_of_cat.images)
    live.revert(vlm)
    assert live.digest == patch.digest
    assert after == [before[0].replace("cat", "dog")]
    assert vlm.caption(request_of_cat.images) == before


def test_both_solvers_make_the_same_patch(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest) -> None:
    hparams = MMNeurons.from_hparams("iconworld-llava").hparams
    slow = MMNeurons(dataclasses.replace(hparams, solver="gradient_descent")).execute(vlm, request_of_cat)
    quick = MMNeurons(dataclasses.replace(hparams, solver="closed_form")).execute(vlm, request_of_cat)
    for site, (units, rows) in quick.deltas.items():
        assert torch.equal(units, slow.deltas[site][0])
        assert torch.allclose(rows, slow.deltas[site][1], rtol=1e-5)


def test_a_beta_that_holds_neurons_is_named(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    with pytest.warns(UserWarning, match=r"beta=1e\+06 holds 5 of 5 neurons.*L\d+\.U\d+: "):
        MMNeurons(MMNeuronsHparams(beta=1e6)).execute(vlm, request_of_cat)


def test_swaps_that_share_a_neuron_share_its_row(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    """With one list of neurons for both, Algorithm 1 descends on the sum of the losses: without a penalty the rows add up."""
    boat = iconworld_cases(7, "validation")[6].request
    editor, neurons = MMNeurons.from_hparams("iconworld-llava"), [mmedit.Neuron(5, 3), mmedit.Neuron(4, 7)]
    assert editor.hparams.beta == 0
    alone = [editor.execute(vlm, one, neurons=neurons) for one in (request_of_cat, boat)]
    together = editor.execute(vlm, [request_of_cat, boat], neurons=neurons)
    assert len(together.edits) == 2
    for site, (units, rows) in together.deltas.items():
        assert torch.equal(units, alone[0].deltas[site][0])
        assert torch.allclose(rows, alone[0].deltas[site][1] + alone[1].deltas[site][1], atol=1e-6)


def test_words_of_one_token_need_no_warning(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat)


def test_source_and_target_must_differ_in_their_first_token(vlm: mmedit.VisionLanguageModel, cat_file: object) -> None:
    with pytest.raises(RequestError, match="begin with the same token"):
        MMNeurons.from_hparams("iconworld-llava").execute(vlm, mmedit.EditRequest(cat_file, "cat", "cat-house"))


def test_a_source_that_is_not_said_is_answered_with_the_caption(
    vlm: mmedit.VisionLanguageModel, cat_file: object
) -> None:
    with pytest.raises(RequestError) as caught:
        MMNeurons.from_hparams("iconworld-llava").execute(vlm, mmedit.EditRequest(cat_file, "robot", "dog"))
    assert vlm.caption(cat_file)[0] in str(caught.value)
    assert "nouns: cat" in str(caught.value)


def test_several_pictures_average_their_activations(vlm: mmedit.VisionLanguageModel, cat_file: object) -> None:
    editor = MMNeurons.from_hparams("iconworld-llava")
    once = editor.execute(vlm, mmedit.EditRequest([cat_file], "cat", "dog"))
    twice = editor.execute(vlm, mmedit.EditRequest([cat_file, cat_file], "cat", "dog"))
    assert once.neurons == twice.neurons
    for site in once.deltas:
        assert torch.allclose(once.deltas[site][1], twice.deltas[site][1], rtol=1e-4)


def test_an_edit_on_top_of_another_stacks_with_it(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    editor = MMNeurons.from_hparams("iconworld-llava")
    first = editor.apply(vlm, request_of_cat)
    second = editor.apply(vlm, mmedit.EditRequest(request_of_cat.images, "dog", "boat"))
    assert " boat " in vlm.caption(request_of_cat.images)[0]
    first.revert(vlm)
    second.revert(vlm)


def test_neurons_of_the_users_choice_are_the_ones_edited(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    chosen = (mmedit.Neuron(1, 3), mmedit.Neuron(4, 0))
    patch = MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat, neurons=chosen)
    assert patch.neurons == chosen
    with pytest.raises(RequestError, match="no such unit"):
        MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat, neurons=[mmedit.Neuron(1, 512)])


def test_without_a_source_the_answer_is_edited_where_it_first_differs(
    vlm: mmedit.VisionLanguageModel, cat_file: Path
) -> None:
    """As MMEdit's and EasyEdit's records ask: a picture, a question, and the whole new answer."""
    editor = MMNeurons.from_hparams("iconworld-llava")
    old = vlm.caption(cat_file)[0]
    words = old.split()
    place = words.index("cat")
    request = mmedit.EditRequest(cat_file, None, " ".join([*words[:place], "dog", *words[place + 1 :]]), CAPTION_PROMPT)
    patch = editor.execute(vlm, request)
    assert patch.edits[0]["source"] == old and patch.edits[0]["target"] == request.target
    named = editor.execute(vlm, mmedit.EditRequest(cat_file, "cat", "dog"))
    assert same_rows(patch, named)  # the same tokens at the same place
    with patch.applied(vlm):
        assert vlm.caption(cat_file)[0] == request.target
    with pytest.raises(RequestError, match="gives this answer already"):
        editor.execute(vlm, mmedit.EditRequest(cat_file, None, old, CAPTION_PROMPT))
    shorter = editor.execute(vlm, mmedit.EditRequest(cat_file, None, " ".join(words[:place]), CAPTION_PROMPT))
    assert shorter.edits[0]["target_token_id"] in vlm.end_ids  # the answer shall end there


def same_rows(a: mmedit.Patch, b: mmedit.Patch) -> bool:
    return a.sites == b.sites and all(
        torch.equal(a.units(site), b.units(site)) and torch.equal(a.rows(site), b.rows(site)) for site in a.sites
    )

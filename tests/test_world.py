"""IconWorld: its pictures show what its scenes say, its language says what its scenes show, and nothing is stored."""

import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from mmedit.testbed import benchmark_pictures
from mmedit.testbed.benchmark import SwapCase, swap_cases
from mmedit.testbed.icons import DRAWINGS, ROLES, paint, role_map
from mmedit.testbed.language import PLURALS, Turn, caption, captions, facts, questions
from mmedit.testbed.world import ARRANGEMENTS, COLOURS, GROUNDS, KINDS, NOUNS, SIZE, SPLITS, Scene, render, scene

law = settings(deadline=None, max_examples=50)  # no deadline: the machine may be busy

NUMBERS = st.integers(0, 10**9 - 1)
NAMES = st.sampled_from(sorted(SPLITS))
SINGULAR_OF = {plural: noun for noun, plural in PLURALS.items()} | {noun: noun for noun in NOUNS}
SCENES = [scene("train", number) for number in range(400)]
CASES = swap_cases("benchmark", 45)


def asked(drawn: Scene, times: int = 3) -> list[Turn]:
    return [turn for i in range(times) for turn in questions(drawn, random.Random(f"question {i} about {drawn.seed}"))]


# The world


def test_the_world_is_varied_enough() -> None:
    assert len(NOUNS) >= 16 and len(KINDS) >= 4 and len(COLOURS) >= 6 and len(GROUNDS) >= 5
    assert all(len(nouns) >= 2 for nouns in KINDS.values())
    assert {thing.noun for drawn in SCENES for thing in drawn.things} == set(NOUNS) == set(DRAWINGS)
    assert {thing.colour for drawn in SCENES for thing in drawn.things} == set(COLOURS)
    assert {drawn.ground for drawn in SCENES} == set(GROUNDS)
    assert {drawn.arrangement for drawn in SCENES} == set(ARRANGEMENTS)


def test_no_word_means_two_things() -> None:
    words = [*NOUNS, *COLOURS, *GROUNDS, *KINDS]
    assert max(Counter(words).values()) == 1
    assert len(set(PLURALS.values())) == len(NOUNS)
    assert not set(PLURALS.values()) & ({*words} - {noun for noun in NOUNS if PLURALS[noun] == noun})


@law
@given(NAMES, NUMBERS)
def test_the_same_number_is_the_same_scene_and_picture(split: str, number: int) -> None:
    first, second = scene(split, number), scene(split, number)
    assert first == second
    (picture, masks), (again, masks_again) = render(first), render(second)
    assert picture.tobytes() == again.tobytes() and np.array_equal(masks, masks_again)


def test_another_process_makes_the_same_world() -> None:
    """Python's string hashes differ between processes, so nothing may depend on the order of a set."""
    made = (
        "import hashlib, random; from mmedit.testbed.benchmark import swap_cases; from mmedit.testbed.world import *;"
        "from mmedit.testbed.language import *;"
        "s = [scene('train', i, exclude={'cat', 'dog'}) for i in range(20)];"
        "p = b''.join(render(d)[0].tobytes() for d in s); q = [questions(d, random.Random(0)) for d in s];"
        "r = repr((s, q, captions(s[0]), facts(), swap_cases('validation', 3)));"
        "print(hashlib.sha256(p + r.encode()).hexdigest())"
    )
    told = [
        subprocess.run([sys.executable, "-c", made], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        for seed in ("1", "2")
    ]
    assert told[0].stdout and told[0].stdout == told[1].stdout, told[0].stderr.decode()


@law
@given(NAMES, NUMBERS)
def test_splits_never_share_a_seed(split: str, number: int) -> None:
    """Each split counts up from a start of its own, and the starts are farther apart than a split is long."""
    assert scene(split, number).seed == scene(split, 0).seed + number
    starts = sorted(scene(name, 0).seed for name in SPLITS)
    assert len(starts) == 3 and all(b - a >= 10**9 for a, b in pairwise(starts))


@pytest.mark.parametrize("split, number", [("test", 0), ("train", -1), ("train", 10**9)])
def test_a_scene_that_does_not_exist_is_refused(split: str, number: int) -> None:
    with pytest.raises(ValueError, match=r"split is one of .*'benchmark'.*number 0 to") as caught:
        scene(split, number)
    assert repr(split) in str(caught.value) and str(number) in str(caught.value)


@pytest.mark.parametrize("arrangement", [None, *ARRANGEMENTS])
@pytest.mark.parametrize("noun", NOUNS)
def test_include_exclude_and_arrangement_are_obeyed(noun: str, arrangement: str | None) -> None:
    others = [other for other in NOUNS if other != noun]
    places = Counter()
    for number in range(30):
        shown = scene("validation", number, include=noun, arrangement=arrangement)
        hidden = scene("validation", number, exclude=(noun,), arrangement=arrangement)
        both = scene("validation", number, include=noun, exclude=others[:17], arrangement=arrangement)
        assert noun in shown.nouns and noun not in hidden.nouns
        assert noun in both.nouns and not {*both.nouns} & {*others[:17]}
        assert {shown.arrangement, hidden.arrangement, both.arrangement} <= {arrangement or shown.arrangement}
        places[shown.nouns.index(noun)] += 1
    if arrangement in ("beside", "above"):
        assert min(places[0], places[1]) > 0, "the included thing always stands in the same place"


def test_an_arrangement_is_what_its_name_says() -> None:
    for drawn in [*SCENES, *(scene("train", number, include="cat") for number in range(200))]:
        first, *rest = drawn.things
        if drawn.arrangement == "one":
            assert not rest and drawn.nouns == (first.noun,)
            continue
        (second,) = rest
        alike = (first.noun, first.colour) == (second.noun, second.colour)
        assert alike == (drawn.arrangement == "pair") and (first.noun == second.noun) == alike
        if drawn.arrangement == "above":
            assert first.top + first.size <= second.top
        else:
            assert first.left + first.size <= second.left


def test_every_drawing_is_a_shape_of_its_own_with_enough_of_its_colour() -> None:
    maps = {noun: role_map(noun) for noun in NOUNS}
    for noun, roles in maps.items():
        assert (roles == ROLES.index("body")).mean() > 0.05, noun
        assert (np.isin(roles, [ROLES.index("body"), ROLES.index("dark"), ROLES.index("light")])).mean() > 0.1, noun
        assert roles[[0, -1]].max() == roles[:, [0, -1]].max() == 0, f"{noun} is cut off"
    for a, b in combinations(NOUNS, 2):
        for other in (maps[b], maps[b][:, ::-1]):
            assert (maps[a] != other).mean() > 0.1, (a, b)
            assert ((maps[a] > 0) != (other > 0)).mean() > 0.05, (a, b)


@pytest.mark.parametrize("noun", NOUNS)
def test_paint_follows_colour_size_and_mirror(noun: str) -> None:
    red, blue = (np.asarray(paint(noun, colour, 128), int) for colour in ((200, 0, 0), (0, 0, 200)))
    body = role_map(noun) == ROLES.index("body")
    assert (red[body] == (200, 0, 0, 255)).all() and (blue[body] == (0, 0, 200, 255)).all()
    assert (red[..., 3] == 255 * (role_map(noun) > 0)).all() and (red[..., 3] == blue[..., 3]).all()
    assert (np.asarray(paint(noun, (200, 0, 0), 128, mirrored=True)) == red[:, ::-1]).all()
    assert paint(noun, (200, 0, 0), 31).size == (31, 31)


def test_things_lie_inside_the_picture_where_their_masks_say() -> None:
    """Seen from outside: what differs from the empty ground is the things, and each mask covers its own."""
    for drawn in SCENES:
        picture, masks = render(drawn)
        empty = np.asarray(render(replace(drawn, things=()))[0], int)
        changed = (np.asarray(picture) != empty).any(-1)
        assert picture.mode == "RGB" and picture.size == (SIZE, SIZE) and len(masks) == len(drawn.things)
        assert np.sum(masks, 0).max() == 1, "masks overlap"
        grown = Image.fromarray(np.any(masks, 0)).convert("L").filter(ImageFilter.MaxFilter(3))
        assert not (changed & (np.asarray(grown) == 0)).any(), "something is drawn outside its mask"
        for thing, mask in zip(drawn.things, masks, strict=True):
            assert changed[mask].mean() > 0.97 and mask.sum() > 0.1 * thing.size**2
            box = np.zeros_like(mask)
            box[thing.top : thing.top + thing.size, thing.left : thing.left + thing.size] = True
            assert box.sum() == thing.size**2 and not (mask & ~box).any()


def test_a_thing_shows_the_colour_it_is_said_to_have() -> None:
    for drawn in SCENES:
        pixels = np.asarray(render(drawn)[0], int)
        for thing in drawn.things:
            roles = Image.fromarray(role_map(thing.noun)[:, :: -1 if thing.mirrored else 1])
            body = np.asarray(roles.resize((thing.size, thing.size), Image.Resampling.NEAREST)) == ROLES.index("body")
            seen = pixels[thing.top : thing.top + thing.size, thing.left : thing.left + thing.size][body]
            far = {colour: abs(np.median(seen, 0) - rgb).sum() for colour, rgb in COLOURS.items()}
            assert min(far, key=far.__getitem__) == thing.colour, thing


def test_grounds_differ_and_vary() -> None:
    empty = {
        ground: [np.asarray(render(Scene(ground, "one", (), seed))[0], int) for seed in range(10)] for ground in GROUNDS
    }
    means = {ground: np.mean(pictures, (0, 1, 2)) for ground, pictures in empty.items()}
    assert min(abs(means[a] - means[b]).max() for a, b in combinations(GROUNDS, 2)) > 20
    assert all((a != b).any() for pictures in empty.values() for a, b in pairwise(pictures))


# Its language


def test_a_caption_names_each_thing_with_its_colour_in_order_and_the_ground() -> None:
    for drawn in SCENES:
        words = caption(drawn).split()
        things = [(thing.colour, thing.noun) for thing in drawn.things]
        pairs = [(a, SINGULAR_OF[b]) for a, b in pairwise(words) if a in COLOURS and b in SINGULAR_OF]
        assert pairs == (things[:1] if drawn.arrangement == "pair" else things)
        assert len([word for word in words if word in SINGULAR_OF]) == len(pairs)
        assert words[-3:] == ["on", "the", drawn.ground]
        assert ("above" in words) == (drawn.arrangement == "above")
        assert (words[0] == "two") == (drawn.arrangement == "pair")
        assert words[2] == (PLURALS if words[0] == "two" else SINGULAR_OF)[drawn.things[0].noun]


def test_different_looking_scenes_have_different_captions() -> None:
    told = defaultdict(set)
    for drawn in SCENES:
        told[caption(drawn)].add((drawn.ground, drawn.arrangement, *((t.colour, t.noun) for t in drawn.things)))
    assert max(map(len, told.values())) == 1


def test_the_caption_is_the_same_under_every_prompt() -> None:
    for drawn in SCENES[:20]:
        turns = captions(drawn)
        assert {turn.answer for turn in turns} == {caption(drawn)}
        assert len({turn.prompt for turn in turns}) == len({turn.prefix for turn in turns}) == len(turns) >= 3
        assert all(turn.prefix for turn in turns)


def test_an_stands_before_vowels_and_only_there() -> None:
    texts = [caption(drawn) for drawn in SCENES] + [f"{t.prompt} {t.answer}" for d in SCENES[:99] for t in asked(d)]
    texts += [f"{turn.prompt} {turn.answer}" for turn in facts()]
    found = re.findall(r"\b(an?) (\w)", " ".join(texts))
    assert all((article == "an") == (letter in "aeiou") for article, letter in found)
    assert {article for article, _ in found} == {"a", "an"}


def right_answer(prompt: str, drawn: Scene) -> str:
    """A second opinion, from where the things lie."""
    things = drawn.things
    left, right = min(things, key=lambda t: t.left), max(things, key=lambda t: t.left)
    upper, lower = min(things, key=lambda t: t.top), max(things, key=lambda t: t.top)
    nouns = {thing.noun: thing for thing in things}
    if found := re.fullmatch(r"What colour is the (\w+)\?", prompt):
        return nouns[found[1]].colour
    if found := re.fullmatch(r"Is there an? (\w+)\?", prompt):
        assert found[1] in NOUNS
        return "yes" if found[1] in nouns else "no"
    if found := re.fullmatch(r"Where is the (\w+)\?", prompt):
        thing = nouns[found[1]]
        if drawn.arrangement == "above":
            return "above" if thing is upper else "below"
        return "on the left" if thing is left else "on the right"
    return {
        "What is on the left?": left.noun,
        "What is on the right?": right.noun,
        "What is above?": upper.noun,
        "What is below?": lower.noun,
        "What is the ground?": drawn.ground,
        "How many things are there?": ["none", "one", "two", "three"][len(things)],
    }[prompt]


def test_every_question_has_the_right_answer_and_one_only() -> None:
    for drawn in SCENES:
        turns = asked(drawn)
        assert [turn.answer for turn in turns] == [right_answer(turn.prompt, drawn) for turn in turns]
        assert not any(turn.prefix for turn in turns)


def test_a_place_is_asked_for_only_where_there_are_two() -> None:
    for drawn in SCENES:
        places = {turn.prompt for turn in asked(drawn, 9) if re.search("left|right|above|below|Where", turn.prompt)}
        assert bool(places) == (drawn.arrangement in ("beside", "above"))
        assert not places & ({"What is above?", "What is below?"} if drawn.arrangement == "beside" else set())
        assert not places & (
            {"What is on the left?", "What is on the right?"} if drawn.arrangement == "above" else set()
        )


FAMILY = re.compile(rf"\b({'|'.join([*NOUNS, *PLURALS.values(), *COLOURS, *GROUNDS, *KINDS])})\b|\ban?\b")


def families(turns: list[Turn]) -> dict[str, list[str]]:
    """The answers to each question, with what it is about left out of the question."""
    answers = defaultdict(list)
    for turn in turns:
        answers[FAMILY.sub("_", turn.prompt)].append(turn.answer)
    return answers


def test_no_family_of_questions_has_an_answer_that_is_always_right() -> None:
    """Neither about pictures nor about facts; yes and no come in fair shares about pictures."""
    about_pictures = families([turn for drawn in SCENES for turn in asked(drawn)])
    for family, answers in (about_pictures | families(facts())).items():
        assert len(set(answers)) > 1, family
    yes_no = {family: answers for family, answers in about_pictures.items() if "yes" in answers}
    assert yes_no and all(0.35 < answers.count("yes") / len(answers) < 0.65 for answers in yes_no.values())


@law
@given(NUMBERS, st.integers())
def test_one_question_of_each_family_that_fits(number: int, seed: int) -> None:
    drawn = scene("train", number)
    turns = questions(drawn, random.Random(seed))
    assert turns == questions(drawn, random.Random(seed))
    assert len(turns) == {"one": 4, "pair": 2, "beside": 6, "above": 6}[drawn.arrangement]
    assert len(families(turns)) == len(turns)


def test_facts_are_distinct_always_the_same_and_need_no_picture() -> None:
    turns = facts()
    assert turns == facts() and len({turn.prompt for turn in turns}) == len(turns)
    assert not {turn.prompt for turn in turns} & {turn.prompt for drawn in SCENES for turn in asked(drawn)}


def test_facts_agree_with_the_world_and_with_each_other() -> None:
    known = {turn.prompt: turn.answer for turn in facts()}
    article = {word: "an" if word[0] in "aeiou" else "a" for word in [*NOUNS, *KINDS]}
    for kind, nouns in KINDS.items():
        for noun in nouns:
            thing = f"{article[noun]} {noun}"
            assert known[f"What kind of thing is {thing}?"] == f"{article[kind]} {kind}"
            is_a = {other: known[f"Is {thing} {article[other]} {other}?"] for other in KINDS}
            assert is_a == {other: "yes" if other == kind else "no" for other in KINDS}
            assert known[f"Is {thing} alive?"] == ("yes" if kind in ("animal", "plant") else "no")
            assert known[f"What is more than one {noun} called?"] == PLURALS[noun]
    assert {word: known[f"Is {word} a colour?"] for word in [*COLOURS, *GROUNDS]} == {
        **dict.fromkeys(COLOURS, "yes"),
        **dict.fromkeys(GROUNDS, "no"),
    }
    mixed = {prompt: answer for prompt, answer in known.items() if prompt.endswith(" make?")}
    for prompt, answer in mixed.items():
        a, b = re.fullmatch(r"What do (\w+) and (\w+) make\?", prompt).groups()
        assert len({a, b, answer}) == 3 and {a, b, answer} <= {*COLOURS}
        assert mixed[f"What do {b} and {a} make?"] == answer
    assert len(mixed) == 6


def test_plurals_are_spelt_as_in_english() -> None:
    irregular = {"fish": "fish", "cactus": "cacti"}
    for noun, plural in PLURALS.items():
        regular = re.sub(r"(?<=[^aeiou])y$", "ie", noun) + ("es" if re.search("(s|x|ch|sh)$", noun) else "s")
        assert plural == irregular.get(noun, regular)


# Its benchmark


def scenes_of(case: SwapCase) -> list[Scene]:
    return [case.edit, *case.related, *case.unrelated]


def test_benchmark_pictures_are_the_benchmark_split_with_its_captions() -> None:
    first = [(picture.tobytes(), told, things) for picture, told, things in benchmark_pictures(5)]
    drawn = [scene("benchmark", number) for number in range(5)]
    assert first == [(render(one)[0].tobytes(), caption(one), one.things) for one in drawn]
    assert len(list(benchmark_pictures(0))) == 0


def test_every_noun_is_a_source_in_its_turn_and_no_swap_comes_twice() -> None:
    assert {case.source for case in CASES[: len(NOUNS)]} == {case.source for case in CASES[20:40]} == {*NOUNS}
    assert all(case.source != case.target and case.target in NOUNS for case in CASES)
    assert len({(case.source, case.target) for case in CASES}) == len(CASES)
    every = swap_cases("validation", 20 * 19, 0, 0)
    assert len({(case.source, case.target) for case in every}) == 20 * 19


@pytest.mark.parametrize("split", ["validation", "benchmark"])
def test_the_source_is_told_of_in_edit_and_related_and_never_in_unrelated(split: str) -> None:
    for case in swap_cases(split, 20):
        assert len(case.edit.things) == 1, "the picture to edit shows nothing but the source"
        assert all(case.source in caption(drawn).split() for drawn in (case.edit, *case.related))
        assert not any(case.source in drawn.nouns for drawn in case.unrelated)
        assert (len(case.related), len(case.unrelated)) == (16, 32)
        assert all(SPLITS[split] <= drawn.seed < SPLITS[split] + 10**9 for drawn in scenes_of(case))
        assert {drawn.arrangement for drawn in case.related} == {"one", "beside", "above"}
        assert {drawn.arrangement for drawn in case.unrelated} == {*ARRANGEMENTS}


def test_no_scene_stands_twice_in_the_benchmark_or_among_its_pictures() -> None:
    drawn = [one for case in CASES for one in scenes_of(case)] + [scene("benchmark", number) for number in range(999)]
    assert len({one.seed for one in drawn}) == len(drawn)
    assert len({(one.ground, one.things) for one in drawn}) == len(drawn)


@law
@given(st.integers(1, 30), st.integers(0, 3), st.integers(0, 3))
def test_fewer_cases_are_the_first_of_more(n: int, n_related: int, n_unrelated: int) -> None:
    cases = swap_cases("benchmark", n, n_related, n_unrelated)
    assert cases == swap_cases("benchmark", 31, n_related, n_unrelated)[:n]
    assert all((len(case.related), len(case.unrelated)) == (n_related, n_unrelated) for case in cases)
    assert [(case.source, case.target) for case in cases] == [(case.source, case.target) for case in CASES[:n]]


@pytest.mark.parametrize("n", [0, -1, 20 * 19 + 1])
def test_more_swaps_than_pairs_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=rf"n={n}\): there are 1 to 380 swaps"):
        swap_cases("benchmark", n)

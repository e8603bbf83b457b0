"""Concept swaps in IconWorld: bare ones, for tuning, and the benchmark, with all that an edit is judged on."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from mmedit.cases import EditCase, Kind, Probe
from mmedit.data.deferred import Deferred
from mmedit.errors import RequestError
from mmedit.requests import CAPTION_PROMPT, EditRequest, Prompt
from mmedit.testbed.language import REPHRASED_PROMPTS, Turn, about, about_all, captions, facts
from mmedit.testbed.world import KINDS, NOUNS, Arrangement, Scene, render, scene

SINGULAR: tuple[Arrangement, ...] = ("one", "beside", "above")  # the caption has the noun itself, not its plural


@dataclass(frozen=True)
class SwapCase:
    """One concept swap with its pictures, none of which stands twice."""

    source: str
    target: str
    edit: Scene
    related: tuple[Scene, ...]
    unrelated: tuple[Scene, ...]


def swap_cases(split: str, n: int, n_related: int = 16, n_unrelated: int = 32) -> list[SwapCase]:
    """The first swaps of a split; sources go round all nouns, so that every kind has its share.

    Args:
        split: `validation` or `benchmark`.
        n: how many swaps, at most one for each ordered pair of nouns.
        n_related: other pictures with the source, per swap.
        n_unrelated: pictures without it, per swap.

    Returns:
        The cases, the same on every machine.

    Raises:
        ValueError: if there are not as many pairs.

    Example:
        >>> case = swap_cases("benchmark", 1)[0]
        >>> case.source in case.edit.nouns, any(case.source in drawn.nouns for drawn in case.unrelated)
        (True, False)
    """
    pairs = list(permutations(NOUNS, 2))
    if not 0 < n <= len(pairs):
        raise ValueError(f"swap_cases(n={n}): there are 1 to {len(pairs)} swaps")
    rng = random.Random(f"swaps of {split}")
    rng.shuffle(pairs)
    queues = {noun: [pair for pair in pairs if pair[0] == noun] for noun in NOUNS}
    in_turn = [queues[noun][turn] for turn in range(len(NOUNS) - 1) for noun in rng.sample(NOUNS, len(NOUNS))]
    per_case, cases = 1 + n_related + n_unrelated, []
    for index, (source, target) in enumerate(in_turn[:n]):
        first = 10**6 + index * per_case  # beyond the numbers that other uses of the split begin with
        shown = [scene(split, first + i, include=source, arrangement=SINGULAR[i % 3]) for i in range(1 + n_related)]
        hidden = [scene(split, first + 1 + n_related + i, exclude=(source,)) for i in range(n_unrelated)]
        cases.append(SwapCase(source, target, shown[0], tuple(shown[1:]), tuple(hidden)))
    return cases


N_RELATED, N_UNRELATED, N_WITH_TARGET = 8, 16, 2
N_FACTS = {
    ("other", "open"): 2, ("other", "yes or no"): 1, ("target", "open"): 1, ("target", "yes or no"): 1,
    ("source", "open"): 2, ("source", "yes or no"): 1,
}  # fmt: skip
TURNS = 6  # swaps per source: two within its kind, one into each other kind
FIRST = 10**7  # beyond the numbers of swap_cases
FURTHER = 2 * 10**7  # beyond those


class Drawing(Deferred):
    """The picture of a scene, drawn when it is first looked at."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(lambda: render(scene)[0])
        self.scene = scene


def iconworld_cases(n: int | None = None, split: str = "benchmark", pictures: int = 1) -> list[EditCase]:
    """The benchmark: 120 swaps, in which every noun is six times the source and six times the target.

    Each round of 20 swaps has all nouns as sources, a third of them within a kind. A case has 53 probes:

    - `edit`: the picture, of a single source, under the paper's prompt; `rephrased`: the same under two others;
    - `related`: 8 other pictures with the source. 6 of them show another thing too; about each of these one `question` whose
      answer is the source ("What is on the left?") and two `same_image`: what is in the other place, and its colour;
    - `unrelated`: 16 pictures without the source, 2 of them with the target;
    - `text_only`: 8 questions: 3 about the source ("What is more than one cat called?"), 2 about the target, 3 about others.

    None has an answer: the unedited model's own, with the source replaced where the edit shall change it, is the measure.

    Args:
        n: the first so many swaps; all when None.
        split: `benchmark`, or `validation` for tuning, with other pictures and other swaps.
        pictures: from which each swap is made. For each beyond the first, a case of its own follows, with the probes `edit`
            and `rephrased` alone; such cases are for edits at once.

    Returns:
        The cases, the same on every machine. Pictures are drawn when they are first looked at.

    Raises:
        RequestError: if `n` or `pictures` is below 1, or there is no such split.

    Example:
        >>> case = iconworld_cases(1)[0]
        >>> case.request.source in case.probes[0].objects, len({probe.kind for probe in case.probes})
        (True, 7)
    """
    if split not in ("benchmark", "validation") or (n is not None and n < 1) or pictures < 1:
        expected = "n and pictures at least 1, split `benchmark` or `validation`"
        raise RequestError("no such benchmark", got=f"n={n}, split={split!r}, pictures={pictures}", expected=expected)
    swaps = list(_swaps(random.Random(f"benchmark of {split}")))
    return [
        _case(split, index, *swap) if i == 0 else _further(split, index + i * len(swaps), i, *swap)
        for index, swap in enumerate(swaps[:n])
        for i in range(pictures)
    ]


def _swaps(rng: random.Random) -> Iterator[tuple[str, str]]:
    """All swaps in rounds of 20. A step leads from kind to kind in a ring; 0 and 5 lead back, to two different nouns."""
    kinds = [rng.sample(nouns, len(nouns)) for nouns in rng.sample(list(KINDS.values()), len(KINDS))]
    sources = [(k, i) for k, nouns in enumerate(kinds) for i in range(len(nouns))]
    for turn in range(TURNS):
        for k, i in rng.sample(sources, len(sources)):
            step = (turn + k + i) % TURNS
            targets = kinds[(k + step) % len(kinds)]
            yield kinds[k][i], targets[(i + (step or 2)) % len(targets)]


def _case(split: str, index: int, source: str, target: str) -> EditCase:
    name, first = f"{source}-to-{target}", FIRST + index * (1 + N_RELATED + N_UNRELATED)
    edit, *related = (
        scene(split, first + i, include=source, arrangement=SINGULAR[i % 3]) for i in range(1 + N_RELATED)
    )
    unrelated = [
        scene(split, first + 1 + N_RELATED + i, target if i >= N_UNRELATED - N_WITH_TARGET else None, exclude=(source,))
        for i in range(N_UNRELATED)
    ]
    picture = Drawing(edit)
    probes = _about_edit(picture, f"{name}/edit")
    for i, drawn in enumerate(related):
        probes += _about_source(Drawing(drawn), f"{name}/related {i}", source)
    probes += [_probe("unrelated", Drawing(drawn), f"{name}/unrelated {i}") for i, drawn in enumerate(unrelated)]
    probes += [Probe("text_only", None, Prompt(turn.prompt)) for turn in _facts(split, source, target)]
    return EditCase(name, EditRequest(picture, source, target, CAPTION_PROMPT), tuple(probes))


def _further(split: str, number: int, i: int, source: str, target: str) -> EditCase:
    """A swap seen in another picture."""
    picture = Drawing(scene(split, FURTHER + number, include=source, arrangement=SINGULAR[i % 3]))
    name = f"{source}-to-{target}/edit {i}"
    return EditCase(name, EditRequest(picture, source, target, CAPTION_PROMPT), tuple(_about_edit(picture, name)))


def _about_edit(picture: Drawing, label: str) -> list[Probe]:
    prompts = [Prompt(*prompt) for prompt in REPHRASED_PROMPTS]
    return [_probe("edit", picture, label), *(_probe("rephrased", picture, label, prompt) for prompt in prompts)]


def _probe(kind: Kind, picture: Drawing, label: str, prompt: Prompt = CAPTION_PROMPT) -> Probe:
    return Probe(kind, picture, prompt, objects=picture.scene.nouns, label=label)


def _about_source(picture: Drawing, label: str, source: str) -> list[Probe]:
    """The caption of a related picture, and, where it shows another thing, questions about both."""
    probes = [_probe("related", picture, label)]
    for thing in picture.scene.things if len(picture.scene.things) > 1 else ():
        place, _, colour, _ = (Prompt(turn.prompt) for turn in about(picture.scene, thing))
        if thing.noun == source:
            probes.append(_probe("question", picture, label, place))
        else:
            probes += [_probe("same_image", picture, label, prompt) for prompt in (place, colour)]
    return probes


def _facts(split: str, source: str, target: str) -> list[Turn]:
    """Text-only questions: about the source, about the target, and about neither."""
    rng = random.Random(f"facts about {source} and {target} in {split}")
    groups: dict[tuple[str, str], list[Turn]] = defaultdict(list)
    for turn in facts():
        words = re.findall(r"\w+", turn.prompt)
        subject = "source" if source in words else "target" if target in words else "other"
        groups[subject, "yes or no" if turn.answer in ("yes", "no") else "open"].append(turn)
    return [turn for group, n in N_FACTS.items() for turn in rng.sample(groups[group], n)]


def right_answer(probe: Probe) -> str:
    """What is right to say to a probe of this benchmark before any edit, without the prompt's answer prefix.

    Raises:
        RequestError: if it is none of this benchmark.

    Example:
        >>> probe = iconworld_cases(1)[0].probes[0]
        >>> probe.objects[0] in right_answer(probe)
        True
    """
    if isinstance(probe.image, Drawing):
        drawn = probe.image.scene
        turns = captions(drawn) + [turn for thing in drawn.things for turn in about(drawn, thing)] + about_all(drawn)
    else:
        turns = facts() if probe.image is None else []
    known = {Prompt(turn.prompt, turn.prefix): turn.answer for turn in turns}
    if probe.prompt not in known:
        raise RequestError("no question of IconWorld", got=probe.prompt, do="say what the answers are")
    return known[probe.prompt]

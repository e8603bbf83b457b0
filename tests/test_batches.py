"""A packed row teaches exactly what separate rows would, and the tokenizer and template write what it packs."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaProcessor

import mmedit
from mmedit.models.forcing import Forced, forced
from mmedit.testbed.batches import IGNORED, Batch, BatchMaker, pixel_values
from mmedit.testbed.checkpoint import N_PATCHES, PATCH, SPECIAL_TOKENS, Family, train_tokenizer, turn_texts
from mmedit.testbed.language import PLURALS, Turn, captions, every_question, facts, questions
from mmedit.testbed.seeing import patch_labels
from mmedit.testbed.train import FAMILIES
from mmedit.testbed.world import COLOURS, GROUNDS, NOUNS, SIZE, SPLITS, Scene, render, scene

law = settings(deadline=None, max_examples=50)  # no deadline: the machine may be busy

STEP, N_PICTURES = 3, 3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family: Family) -> mmedit.VisionLanguageModel:
    """A model of the family with random weights, with a face that knows nothing of training batches."""
    processor = family.build_processor()
    return mmedit.VisionLanguageModel(family.build_model(processor, 0), processor)


@pytest.fixture(scope="module")
def maker(family: Family, model: mmedit.VisionLanguageModel) -> BatchMaker:
    return BatchMaker(family, model.processor, pictures=N_PICTURES, fact_rows=1)


@pytest.fixture(scope="module")
def batch(maker: BatchMaker) -> Batch:
    return maker.batch(STEP)


@torch.inference_mode()
def logits_of(maker: BatchMaker, model: mmedit.VisionLanguageModel, batch: Batch) -> torch.Tensor:
    return model.model.get_output_embeddings()(maker.family.hidden_states(model.model, batch))


@dataclass
class Exchange:
    """One exchange as it stands in a batch, found by positions and masks alone."""

    row: int
    span: range  # of its own tokens
    ids: list[int]  # the shared tokens of its row and its own, as a row of its own would have them
    drawn: Scene | None


def spans(batch: Batch, row: int) -> tuple[int, list[range]]:
    """How many tokens the exchanges of a row share, and where each stands: a token before the answer sees its own exchange."""
    seen = batch.mask[row, 0] == 0
    length = int((batch.labels[row] != IGNORED).nonzero().max()) + 2 if (batch.labels[row] != IGNORED).any() else 0
    starts = [i for i in range(1, length) if not seen[i, i - 1]]
    shared = int(batch.position_ids[row, starts[0]]) if starts else 1
    if not starts:
        return shared, [range(shared, length)] if length else []
    return shared, [range(a, b) for a, b in zip([shared, *starts], [*starts, length], strict=True)]


def exchanges(batch: Batch, maker: BatchMaker) -> list[Exchange]:
    """Every exchange of a batch."""
    image, found = maker.processor.tokenizer.convert_tokens_to_ids("<image>"), []
    for row, ids in enumerate(batch.input_ids.tolist()):
        shared, own = spans(batch, row)
        drawn = maker.scenes(STEP)[batch.seen[row]] if image in ids else None
        found += [Exchange(row, span, ids[:shared] + ids[span.start : span.stop], drawn) for span in own]
    return found


def possible_turns(drawn: Scene | None) -> list[Turn]:
    """Every exchange about a scene, or without one."""
    if drawn is None:
        return facts()
    asked = [turn for seed in range(50) for turn in (*questions(drawn, random.Random(seed)), *every_question(drawn, random.Random(seed)))]  # fmt: skip
    return list(dict.fromkeys([*captions(drawn), *asked]))


def turn_of(exchange: Exchange, maker: BatchMaker) -> Turn:
    """What an exchange is, found by its decoded text."""
    possible = {
        "".join(maker.family.turn_texts(turn, exchange.drawn is not None)) + "</s>": turn
        for turn in possible_turns(exchange.drawn)
    }
    text = maker.processor.tokenizer.decode(exchange.ids)
    return possible[text.replace("<image>" * maker.family.n_image_tokens, "<image>")]


def on_its_own(turn: Turn, drawn: Scene | None, model: mmedit.VisionLanguageModel) -> Forced:
    """What the model predicts when one exchange is all that it gets, made by the library's own processor and prompt."""
    answer = model.tokenizer(f" {turn.answer}", add_special_tokens=False).input_ids
    pictures = None if drawn is None else [render(drawn)[0]]
    return forced(model, pictures, [mmedit.Prompt(turn.prompt, turn.prefix)], [answer])[0]


def test_every_exchange_is_a_turn_as_the_library_asks_it(
    batch: Batch, maker: BatchMaker, model: mmedit.VisionLanguageModel
) -> None:
    image = model.tokenizer.convert_tokens_to_ids("<image>")
    for exchange in exchanges(batch, maker):
        turn = turn_of(exchange, maker)
        picture = None if exchange.drawn is None else [render(exchange.drawn)[0]]
        asked = model.inputs(picture, mmedit.Prompt(turn.prompt, turn.prefix))["input_ids"][0]
        asked = asked.masked_fill(asked == model.architecture.image_token_id, image).tolist()
        answer = model.tokenizer(f" {turn.answer}", add_special_tokens=False).input_ids
        assert exchange.ids == [*asked, *answer, model.tokenizer.eos_token_id]


def test_about_each_picture_there_are_two_captions_and_questions(batch: Batch, maker: BatchMaker) -> None:
    asked: dict[Scene | None, list[Turn]] = {}
    for exchange in exchanges(batch, maker):
        asked.setdefault(exchange.drawn, []).append(turn_of(exchange, maker))
    assert list(asked) == [*maker.scenes(STEP), None] and len(set(asked[None])) == 10
    for drawn in maker.scenes(STEP):
        caption, *rephrased = captions(drawn)
        first, second, *others = asked[drawn]
        assert first == caption and second in rephrased
        assert len(set(others)) == 2 and not {caption, *rephrased} & {*others}


def test_labels_are_the_answer_tokens_and_the_end_and_nothing_else(batch: Batch, maker: BatchMaker) -> None:
    tokenizer = maker.processor.tokenizer
    expected = torch.full_like(batch.labels, IGNORED)
    for exchange in exchanges(batch, maker):
        answer = tokenizer(f" {turn_of(exchange, maker).answer}", add_special_tokens=False)["input_ids"]
        end = exchange.span.stop - 1
        expected[exchange.row, end - len(answer) - 1 : end] = torch.tensor([*answer, tokenizer.eos_token_id])
    assert torch.equal(batch.labels, expected)
    learned = batch.labels[:, :-1] != IGNORED
    assert torch.equal(batch.labels[:, :-1][learned], batch.input_ids[:, 1:][learned])


def test_packed_logits_are_those_of_a_row_of_its_own(
    batch: Batch, maker: BatchMaker, model: mmedit.VisionLanguageModel
) -> None:
    """The separate row goes the ordinary way: the processor's batch, no positions, no mask of ours."""
    together = logits_of(maker, model, batch)
    for exchange in exchanges(batch, maker):
        alone = on_its_own(turn_of(exchange, maker), exchange.drawn, model).answer
        end = exchange.span.stop - 2
        assert torch.allclose(together[exchange.row, end - len(alone) : end], alone, atol=1e-4, rtol=0)


def test_every_token_sees_the_shared_ones_and_its_own_exchange_up_to_itself(batch: Batch) -> None:
    for row in range(len(batch.input_ids)):
        shared, own = spans(batch, row)
        seen = batch.mask[row, 0] == 0
        part_of = [0] * shared + [1 + i for i, span in enumerate(own) for _ in span] if own else []
        for a, b in product(range(len(part_of)), repeat=2):
            assert seen[a, b] == (b <= a and part_of[b] in (0, part_of[a]))
        assert seen.any(-1).all() and not seen[: len(part_of), len(part_of) :].any()
        assert (batch.mask[row][batch.mask[row] != 0] < -1e30).all()


def test_exchanges_do_not_see_each_other(batch: Batch, maker: BatchMaker, model: mmedit.VisionLanguageModel) -> None:
    before, z = logits_of(maker, model, batch), model.tokenizer.convert_tokens_to_ids("z")
    image = model.tokenizer.convert_tokens_to_ids("<image>")
    for told in (True, False):
        every = exchanges(batch, maker)
        about = [exchange for exchange in every if (exchange.drawn is not None) == told]
        changed = Batch(**{**vars(batch), "input_ids": batch.input_ids.clone()})
        own = changed.input_ids[about[1].row, about[1].span.start : about[1].span.stop]
        own[own != image] = z
        after = logits_of(maker, model, changed)
        for exchange in every:
            at = (exchange.row, slice(exchange.span.start, exchange.span.stop))
            same = torch.allclose(after[at], before[at], atol=1e-5, rtol=0)
            assert same == (exchange is not about[1]), "only the changed exchange may tell the difference"


def test_a_picture_is_shared_unless_what_is_seen_depends_on_the_instruction(
    batch: Batch, maker: BatchMaker, model: mmedit.VisionLanguageModel
) -> None:
    every, image = exchanges(batch, maker), model.tokenizer.convert_tokens_to_ids("<image>")
    about = [exchange for exchange in every if exchange.drawn is not None]
    n_rows = len(about) if maker.family.instructed else N_PICTURES
    tokens = (batch.input_ids == image).sum(1).tolist()
    assert tokens == [maker.family.n_image_tokens] * n_rows + [0] * (len(tokens) - n_rows)
    assert batch.instruction_mask.any(1).tolist() == [maker.family.instructed and n > 0 for n in tokens]
    before = logits_of(maker, model, batch)
    changed = Batch(**{**vars(batch), "instructions": batch.instructions.clone()})
    changed.instructions[:1, 1:2] += 1
    moved = (logits_of(maker, model, changed) - before).abs().amax(-1) > 1e-5
    first = about[0]
    assert moved[first.row, first.span.start : first.span.stop].any() == maker.family.instructed
    assert not any(moved[one.row, one.span.start : one.span.stop].any() for one in every[1:])


def test_pixel_values_are_the_processor_s_own(
    maker: BatchMaker, batch: Batch, model: mmedit.VisionLanguageModel
) -> None:
    pictures = [render(drawn)[0] for drawn in maker.scenes(STEP)]
    own = model.inputs(pictures)["pixel_values"]
    assert batch.pixel_values.dtype == own.dtype and own.std() > 0.1
    for ours in (batch.pixel_values, maker.labelled(STEP)[0], pixel_values(model.processor, pictures)):
        assert torch.allclose(ours, own, atol=1e-5, rtol=0)


def test_a_step_is_the_same_in_every_maker_and_steps_differ(maker: BatchMaker, batch: Batch) -> None:
    maker.batch(STEP + 1)
    other = BatchMaker(maker.family, maker.processor, pictures=N_PICTURES, fact_rows=1)
    for again in (maker.batch(STEP), other.batch(STEP)):
        assert all(torch.equal(tensor, vars(again)[name]) for name, tensor in vars(batch).items())
    assert not torch.equal(other.batch(STEP + 1).pixel_values, batch.pixel_values)
    told = [[one.ids for one in exchanges(b, maker) if one.drawn is None] for b in (batch, other.batch(STEP + 1))]
    assert len(told[0]) == len(told[1]) == 10 and told[0] != told[1]


def test_steps_share_no_scene_and_see_the_training_split_alone(maker: BatchMaker) -> None:
    drawn = [one for step in range(50) for one in maker.scenes(step)]
    assert len({one.seed for one in drawn}) == len(drawn) == 50 * N_PICTURES
    assert all(one == scene("train", one.seed - SPLITS["train"]) for one in drawn)


def test_a_batch_moves_as_a_whole(batch: Batch) -> None:
    assert {tensor.device.type for tensor in vars(batch.to("meta")).values()} == {"meta"}
    assert {tensor.device.type for tensor in vars(batch).values()} == {"cpu"}


def test_patch_labels_say_what_each_patch_shows(maker: BatchMaker) -> None:
    drawn = [scene("train", number) for number in range(30)]
    masks = [render(one)[1] for one in drawn]
    nouns, colours, grounds = patch_labels(drawn, masks)
    of_step = patch_labels(maker.scenes(STEP), [render(one)[1] for one in maker.scenes(STEP)])
    assert all(map(torch.equal, maker.labelled(STEP)[1], of_step))
    side = SIZE // PATCH
    assert nouns.shape == colours.shape == (30, N_PATCHES) and grounds.shape == (30,)
    for i, one in enumerate(drawn):
        assert list(GROUNDS)[grounds[i]] == one.ground
        for token, (row, column) in enumerate(product(range(side), repeat=2)):
            patch = (slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH))
            shares = {(0, 0): 0.25}  # nothing, unless a thing covers more than a quarter
            for thing, mask in zip(one.things, masks[i], strict=True):
                kind = (1 + NOUNS.index(thing.noun), 1 + list(COLOURS).index(thing.colour))
                shares[kind] = max(shares.get(kind, 0), mask[patch].mean())
            said = (nouns[i, token].item(), colours[i, token].item())
            assert shares[said] > 0.25 or (said == (0, 0) and max(shares.values()) == 0.25)


# The tokenizer and the template


def ids_of(processor: LlavaProcessor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_some_nouns_take_several_tokens_and_most_take_one(processor: LlavaProcessor) -> None:
    lengths = [len(ids_of(processor, f" {noun}")) for noun in NOUNS]
    assert sum(length > 1 for length in lengths) >= len(NOUNS) / 4
    assert sum(length == 1 for length in lengths) >= len(NOUNS) / 2


def test_every_noun_can_be_told_from_every_other_by_its_first_token(processor: LlavaProcessor) -> None:
    """Or a swap between the two could not be asked for."""
    assert len({ids_of(processor, f" {noun}")[0] for noun in NOUNS}) == len(NOUNS)


@law
@given(st.text() | st.integers(0, 10**6).flatmap(lambda n: st.sampled_from(captions(scene("train", n))).map("".join)))
def test_decoding_undoes_encoding(processor: LlavaProcessor, text: str) -> None:
    ids = ids_of(processor, text)
    assert processor.tokenizer.decode(ids) == text
    assert processor.tokenizer.unk_token_id not in ids


def test_the_language_s_own_words_are_short_in_tokens(processor: LlavaProcessor) -> None:
    """All but the nouns that are split on purpose are one token, so that every word but these has one position."""
    words = {word for number in range(200) for word in captions(scene("train", number))[0].answer.split()}
    split = {word for word in words if len(ids_of(processor, f" {word}")) > 1}
    assert split < {*NOUNS, *PLURALS.values()}


def test_special_tokens_are_single_and_in_their_places(processor: LlavaProcessor) -> None:
    tokenizer = processor.tokenizer
    assert [ids_of(processor, token) for token in SPECIAL_TOKENS] == [[i] for i in range(len(SPECIAL_TOKENS))]
    assert tokenizer("a cat")["input_ids"] == [tokenizer.bos_token_id, *ids_of(processor, "a cat")]
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token, processor.image_token}
    assert named == {*SPECIAL_TOKENS} and tokenizer.padding_side == "left"


def test_the_tokenizer_is_learned_the_same_each_time(processor: LlavaProcessor) -> None:
    assert (
        train_tokenizer(image_token="<image>").backend_tokenizer.to_str()
        == processor.tokenizer.backend_tokenizer.to_str()
    )


def conversation(turn: Turn, with_image: bool, answered: bool) -> list[dict[str, Any]]:
    content = [{"type": "image"}] * with_image + [{"type": "text", "text": turn.prompt}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": f"{turn.prefix} {turn.answer}".strip()}]}
    return [{"role": "user", "content": content}, *[answer] * answered]


@pytest.mark.parametrize("with_image", [True, False])
def test_the_chat_template_writes_what_is_trained_on(with_image: bool, processor: LlavaProcessor) -> None:
    drawn = scene("train", 5)
    for turn in [*captions(drawn), *questions(drawn, random.Random(0)), *facts()[:9]]:
        before, answer = turn_texts(turn, with_image)
        asked = processor.apply_chat_template(conversation(turn, with_image, False), add_generation_prompt=True)
        assert "<s>" + asked + (f" {turn.prefix}" if turn.prefix else "") == before
        answered = processor.apply_chat_template(conversation(turn, with_image, True))
        assert f"<s>{answered}" == f"{before}{answer}</s>"
        assert ("<image>" in before) == with_image

"""A packed row teaches exactly what separate rows would, and the tokenizer and template write what it packs."""

import random
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mmedit.testbed.batches import IGNORED, N_IMAGE_TOKENS, Batch, BatchMaker, patch_labels, pixel_values
from mmedit.testbed.checkpoint import PATCH, SPECIAL_TOKENS, build_llava, train_tokenizer, turn_texts
from mmedit.testbed.language import PLURALS, Turn, captions, facts, questions
from mmedit.testbed.world import COLOURS, GROUNDS, NOUNS, SIZE, SPLITS, Scene, render, scene

law = settings(deadline=None, max_examples=50)  # no deadline: the machine may be busy

STEP, N_PICTURES = 3, 3
ROWS = range(N_PICTURES + 1)  # the last one is of facts alone


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def maker(processor: LlavaProcessor) -> BatchMaker:
    return BatchMaker(processor, pictures=N_PICTURES, fact_rows=1)


@pytest.fixture(scope="module")
def batch(maker: BatchMaker) -> Batch:
    return maker.batch(STEP)


@pytest.fixture(scope="module")
def model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    return build_llava(processor).eval()


@torch.inference_mode()
def logits_of(model: LlavaForConditionalGeneration, batch: Batch) -> torch.Tensor:
    return model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        attention_mask=batch.mask,
        position_ids=batch.position_ids,
    ).logits


def parts(batch: Batch, row: int, pad_id: int) -> tuple[int, list[range]]:
    """How many tokens all exchanges of a row share, and where each exchange stands, told by the positions alone."""
    positions = batch.position_ids[row].tolist()
    end = len(positions) - next(i for i, token in enumerate(reversed(batch.input_ids[row].tolist())) if token != pad_id)
    resets = [i for i in range(1, end) if positions[i] <= positions[i - 1]]
    starts = [positions[resets[0]], *resets]
    return starts[0], [range(a, b) for a, b in zip(starts, [*resets, end], strict=True)]


def exchanges(batch: Batch, row: int, processor: LlavaProcessor) -> list[tuple[list[int], range]]:
    """For each exchange of a row its tokens after the shared ones, as a row of its own would have them."""
    shared, spans = parts(batch, row, processor.tokenizer.pad_token_id)
    ids = batch.input_ids[row].tolist()
    return [(ids[:shared] + ids[span.start : span.stop], span) for span in spans]


def possible_turns(drawn: Scene | None) -> dict[str, Turn]:
    """Every exchange about a scene, or without one, by its text."""
    turns = facts() if drawn is None else captions(drawn)
    for seed in range(0 if drawn is None else 200):
        turns += questions(drawn, random.Random(seed))
    return {"".join(turn_texts(turn, drawn is not None)): turn for turn in turns}


def row_turns(batch: Batch, row: int, processor: LlavaProcessor, maker: BatchMaker) -> list[tuple[Turn, str]]:
    """What the exchanges of a row are, found by their decoded text."""
    possible = possible_turns((*maker.scenes(STEP), None)[row])
    texts = []
    for ids, _ in exchanges(batch, row, processor):
        text = processor.tokenizer.decode(ids).replace("<image>" * N_IMAGE_TOKENS, "<image>")
        assert text.startswith("<s>") and text.endswith("</s>")
        texts.append(text.removeprefix("<s>").removesuffix("</s>"))
    return [(possible[text], text) for text in texts]


@pytest.mark.parametrize("row", ROWS)
def test_every_exchange_is_a_turn_as_the_processor_writes_it(
    row: int, batch: Batch, maker: BatchMaker, processor: LlavaProcessor
) -> None:
    found, packed = row_turns(batch, row, processor, maker), exchanges(batch, row, processor)
    assert len({text for _, text in found}) == len(found) > 3
    for (_, text), (ids, _) in zip(found, packed, strict=True):
        picture = {} if row == N_PICTURES else {"images": render(maker.scenes(STEP)[row])[0]}
        assert ids == processor(text=f"{text}</s>", **picture)["input_ids"][0]
    if row < N_PICTURES:
        caption, *rephrased = captions(maker.scenes(STEP)[row])
        turns = [turn for turn, _ in found]
        assert turns[0] == caption and turns[1] in rephrased and not {caption, *rephrased} & {*turns[2:]}


@pytest.mark.parametrize("row", ROWS)
def test_labels_are_the_answer_tokens_and_the_end_and_nothing_else(
    row: int, batch: Batch, maker: BatchMaker, processor: LlavaProcessor
) -> None:
    expected, end = [IGNORED] * batch.labels.shape[1], processor.tokenizer.eos_token_id
    found, packed = row_turns(batch, row, processor, maker), exchanges(batch, row, processor)
    for (turn, _), (_, span) in zip(found, packed, strict=True):
        answer = [*processor.tokenizer(f" {turn.answer}", add_special_tokens=False)["input_ids"], end]
        expected[span.stop - len(answer) - 1 : span.stop - 1] = answer
    labels, ids = batch.labels[row].tolist(), batch.input_ids[row].tolist()
    assert labels == expected
    assert all(label in (IGNORED, following) for label, following in zip(labels, ids[1:], strict=False))


@pytest.mark.parametrize("row", ROWS)
def test_packed_logits_are_those_of_a_row_of_its_own(
    row: int, batch: Batch, maker: BatchMaker, processor: LlavaProcessor, model: LlavaForConditionalGeneration
) -> None:
    """The separate row goes the ordinary way: the processor's batch, no positions, no mask of ours."""
    together = logits_of(model, batch)[row]
    for (_, text), (_, span) in zip(
        row_turns(batch, row, processor, maker), exchanges(batch, row, processor), strict=True
    ):
        picture = {} if row == N_PICTURES else {"images": render(maker.scenes(STEP)[row])[0]}
        with torch.inference_mode():
            alone = model(**processor(text=f"{text}</s>", return_tensors="pt", **picture)).logits[0, -len(span) :]
        assert torch.allclose(together[span.start : span.stop], alone, atol=1e-4, rtol=0)


def test_every_token_sees_the_shared_ones_and_its_own_exchange_up_to_itself(
    batch: Batch, processor: LlavaProcessor
) -> None:
    for row in ROWS:
        shared, spans = parts(batch, row, processor.tokenizer.pad_token_id)
        seen = batch.mask[row, 0] == 0
        part_of = [0] * shared + [1 + i for i, span in enumerate(spans) for _ in span]
        for a, b in product(range(len(part_of)), repeat=2):
            assert seen[a, b] == (b <= a and part_of[b] in (0, part_of[a]))
        assert seen.any(-1).all() and not seen[: len(part_of), len(part_of) :].any()
        assert (batch.mask[row][batch.mask[row] != 0] < -1e30).all()


@pytest.mark.parametrize("row", [0, N_PICTURES])
def test_exchanges_do_not_see_each_other(
    row: int, batch: Batch, processor: LlavaProcessor, model: LlavaForConditionalGeneration
) -> None:
    shared, spans = parts(batch, row, processor.tokenizer.pad_token_id)
    before = logits_of(model, batch)[row]
    changed = Batch(**{**vars(batch), "input_ids": batch.input_ids.clone()})
    changed.input_ids[row, spans[1].start : spans[1].stop] = processor.tokenizer.convert_tokens_to_ids("z")
    after = logits_of(model, changed)[row]
    for i, span in enumerate([range(shared), *spans]):
        same = torch.allclose(after[span.start : span.stop], before[span.start : span.stop], atol=1e-5, rtol=0)
        assert same == (i != 2), "only the changed exchange, the second, may tell the difference"


def test_a_row_of_facts_needs_no_picture(
    batch: Batch, processor: LlavaProcessor, model: LlavaForConditionalGeneration
) -> None:
    assert processor.image_token_id not in batch.input_ids[-1]
    assert (batch.input_ids[:-1] == processor.image_token_id).sum(1).tolist() == [N_IMAGE_TOKENS] * N_PICTURES
    alone = Batch(**{name: tensor[-1:] for name, tensor in vars(batch).items()} | {"pixel_values": None})
    assert torch.allclose(logits_of(model, alone)[0], logits_of(model, batch)[-1], atol=1e-4, rtol=0)


def test_pixel_values_are_the_processor_s_own(maker: BatchMaker, batch: Batch, processor: LlavaProcessor) -> None:
    pictures = [render(drawn)[0] for drawn in maker.scenes(STEP)]
    own = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert batch.pixel_values.dtype == own.dtype and own.std() > 0.1
    for ours in (batch.pixel_values, pixel_values(processor, pictures)):
        assert torch.allclose(ours, own, atol=1e-5, rtol=0)


def test_a_step_is_the_same_in_every_maker_and_steps_differ(
    maker: BatchMaker, batch: Batch, processor: LlavaProcessor
) -> None:
    maker.batch(STEP + 1)
    other = BatchMaker(processor, pictures=N_PICTURES, fact_rows=1)
    for again in (maker.batch(STEP), other.batch(STEP)):
        assert all(torch.equal(tensor, vars(again)[name]) for name, tensor in vars(batch).items())
    assert not torch.equal(other.batch(STEP + 1).pixel_values, batch.pixel_values)
    assert other.batch(STEP + 1).input_ids[-1].tolist() != batch.input_ids[-1].tolist()


def test_steps_share_no_scene_and_see_the_training_split_alone(maker: BatchMaker) -> None:
    drawn = [one for step in range(50) for one in maker.scenes(step)]
    assert len({one.seed for one in drawn}) == len(drawn) == 50 * N_PICTURES
    assert all(one == scene("train", one.seed - SPLITS["train"]) for one in drawn)


def test_a_batch_moves_as_a_whole(batch: Batch) -> None:
    assert {tensor.device.type for tensor in vars(batch.to("meta")).values()} == {"meta"}
    assert {tensor.device.type for tensor in vars(batch).values()} == {"cpu"}


def test_patch_labels_say_what_each_patch_shows(maker: BatchMaker) -> None:
    drawn = [scene("train", number) for number in range(30)]
    nouns, colours, grounds = patch_labels(drawn)
    side = SIZE // PATCH
    assert nouns.shape == colours.shape == (30, N_IMAGE_TOKENS) and grounds.shape == (30,)
    for i, one in enumerate(drawn):
        assert list(GROUNDS)[grounds[i]] == one.ground
        masks = render(one)[1]
        for token, (row, column) in enumerate(product(range(side), repeat=2)):
            patch = (slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH))
            shares = {(0, 0): 0.25}  # nothing, unless a thing covers more than a quarter
            for thing, mask in zip(one.things, masks, strict=True):
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
    assert train_tokenizer().backend_tokenizer.to_str() == processor.tokenizer.backend_tokenizer.to_str()


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
        assert asked + (f" {turn.prefix}" if turn.prefix else "") == before
        answered = processor.apply_chat_template(conversation(turn, with_image, True))
        assert answered == f"{before}{answer}</s>"
        assert ("<image>" in before) == with_image

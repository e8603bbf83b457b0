"""Neurons and rankings: what is printed can be read, what is saved can be loaded."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedit.errors import OutputError, RequestError
from mmedit.neuron import Neuron, NeuronRanking, RankedNeuron, Site

law = settings(deadline=None, max_examples=50)  # no deadline: the machine may be busy

NUMBERS = st.integers(0, 99_999)
EXPERTS = st.none() | NUMBERS | st.just("shared")
NEURONS = st.builds(Neuron, NUMBERS, NUMBERS, EXPERTS)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LINES = st.tuples(st.builds(RankedNeuron, NEURONS, FLOATS, st.lists(st.text()).map(tuple)), FLOATS)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@st.composite
def rankings(draw: st.DrawFn) -> NeuronRanking:
    lines = draw(st.lists(LINES, max_size=4))
    words, captions = st.text(), st.lists(st.text(), max_size=2).map(tuple)
    records, activations = tuple(line[0] for line in lines), tuple(line[1] for line in lines)
    return NeuronRanking(records, draw(words), draw(st.integers()), activations, draw(words), draw(captions))


ENDLESS = b'{"neurons": [], "source": "cat", "scorer": "", "captions": [], "token_id": 1e999}'


def ranking_of(*neurons: Neuron) -> NeuronRanking:
    records = tuple(RankedNeuron(neuron, 1.0 - i, (" cat", "é\n")) for i, neuron in enumerate(neurons))
    return NeuronRanking(records, "cat", 11, tuple(0.25 * i for i in range(len(neurons))), captions=("a cat",))


@law
@given(NEURONS)
def test_a_neuron_is_read_as_it_is_printed(neuron: Neuron) -> None:
    assert Neuron.parse(str(neuron)) == neuron
    assert str(neuron).startswith(f"{neuron.site}.")
    assert neuron.site == Site(neuron.layer, neuron.expert)


@pytest.mark.parametrize(
    "text",
    ["", "L1", "L1.U", "U1", "L-1.U2", "L1.U-2", "L1.X3.U2", "L1.E.U2", "L1.S3.U2", "l1.u2", "L1.U2 ", "L1.U2\n"],
)
def test_any_other_text_is_refused_with_the_forms_that_are_right(text: str) -> None:
    with pytest.raises(RequestError, match="not a neuron") as caught:
        Neuron.parse(text)
    assert caught.value.got == repr(text)
    assert all(form in str(caught.value) for form in ("L20.U188", "L20.E3.U188", "L20.S.U188"))


@pytest.mark.parametrize("numbers", [(-1, 0), (0, -1), (0, 0, -1)])
def test_a_neuron_counts_from_0(numbers: tuple[int, ...]) -> None:
    assert Neuron(*map(abs, numbers)), "the same neuron without the sign is right"
    with pytest.raises(RequestError, match="count from 0") as caught:
        Neuron(*numbers)
    assert "-1" in str(caught.value.got)


def test_neurons_and_sites_are_ordered_by_layer_then_expert_then_unit() -> None:
    """Dense before shared before numbered experts; every pair is comparable in exactly one way."""
    experts = [None, "shared", 0, 1, 10]
    sites = [Site(layer, expert) for layer, expert in product([0, 2, 10], experts)]
    neurons = [Neuron(site.layer, unit, site.expert) for site, unit in product(sites, [0, 2, 10])]
    for ordered in (sites, neurons):
        assert sorted(reversed(ordered)) == ordered
        for (i, a), (j, b) in product(enumerate(ordered), repeat=2):
            assert (a < b, a == b, a > b) == (i < j, i == j, i > j)


def test_keys_and_names_tell_sites_apart() -> None:
    sites = [Site(layer, expert) for layer, expert in product(range(13), [None, "shared", *range(13)])]
    assert len({site.key for site in sites}) == len({str(site) for site in sites}) == len({*sites}) == len(sites)


@law
@given(rankings())
def test_a_ranking_is_loaded_as_it_was_saved(tmp_path_factory: pytest.TempPathFactory, ranking: NeuronRanking) -> None:
    path = tmp_path_factory.mktemp("ranking") / "ranking.json"
    ranking.save(path)
    assert NeuronRanking.load(path) == ranking
    assert [entry.name for entry in path.parent.iterdir()] == ["ranking.json"]


def test_a_ranking_can_be_loaded_where_the_default_encoding_is_not_utf_8(tmp_path: Path) -> None:
    ranking_of(Neuron(1, 2)).save(path := tmp_path / "ranking.json")
    code = "import sys; from mmedit.neuron import NeuronRanking as R;"
    code += "assert R.load(sys.argv[1])[0].tokens[1] == '\\xe9\\n'"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_ranking_is_a_sequence_of_its_records() -> None:
    ranking = ranking_of(*(neurons := (Neuron(3, 1), Neuron(0, 7, 2))))
    assert [record.neuron for record in ranking] == [ranking[0].neuron, ranking[-1].neuron] == list(neurons)
    assert (len(ranking), ranking.neurons, ranking[:1]) == (2, neurons, ranking.records[:1])
    assert ranking[1] in ranking and ranking.index(ranking[1]) == 1


@law
@given(rankings(), st.integers(0, 6))
def test_the_head_of_a_ranking_is_its_beginning_with_everything_else_kept(ranking: NeuronRanking, k: int) -> None:
    head = ranking.head(k)
    assert len(head) == min(k, len(ranking))
    assert (head.records, head.activations) == (ranking.records[:k], ranking.activations[:k])
    about = {"source", "token_id", "scorer", "captions"}
    assert {name: head.to_dict()[name] for name in about} == {name: ranking.to_dict()[name] for name in about}


@law
@given(rankings())
def test_the_printed_table_has_a_line_for_every_neuron_in_order(ranking: NeuronRanking) -> None:
    header, *lines = str(ranking).splitlines()
    assert [line.split()[0] for line in lines] == [str(neuron) for neuron in ranking.neurons]
    for line, (_, score, tokens), o in zip(lines, ranking, ranking.activations, strict=True):
        assert line.endswith(f"{score:.4f} {o:>9.4f}  " + " ".join(map(repr, tokens)))
    assert "neuron" in header and "score" in header


def test_a_ranking_has_one_activation_for_each_neuron() -> None:
    with pytest.raises(RequestError, match="one activation for each neuron") as caught:
        NeuronRanking(ranking_of(Neuron(1, 2)).records, "cat", 11, (0.1, 0.2))
    assert caught.value.got == "1 neurons, 2 activations"


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"\xff\xfe", b"[]", b"3", b'"text"', b"{}", b'{"neurons": []}', b'{"neurons": 3}', ENDLESS],
    ids=repr,
)
def test_a_file_that_is_no_ranking_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / "ranking.json").write_bytes(content)
    with pytest.raises(RequestError, match="neuron ranking") as caught:
        NeuronRanking.load(path)
    assert caught.value.where == path and "NeuronRanking.save" in str(caught.value.expected)


@pytest.mark.parametrize("name", ["missing.json", "", "file/ranking.json"])
def test_a_ranking_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot read a neuron ranking") as caught:
        NeuronRanking.load(tmp_path / name)
    assert caught.value.where == tmp_path / name


@law
@given(data=st.data())
def test_any_field_that_is_missing_or_foreign_gives_a_ranking_or_a_request_error(data: st.DataObject) -> None:
    values: dict[str, Any] = json.loads(json.dumps(ranking_of(Neuron(1, 2), Neuron(3, 4)).to_dict()))
    inside = data.draw(st.sampled_from([values, values["neurons"][1]]))
    field = data.draw(st.sampled_from(sorted(inside)))
    inside[field] = data.draw(JSON)
    try:
        assert isinstance(NeuronRanking.from_dict(values), NeuronRanking)
    except RequestError as error:
        assert error.got
    del inside[field]
    with pytest.raises(RequestError, match="not a neuron ranking") as caught:
        NeuronRanking.from_dict(values)
    assert field in str(caught.value.got)


def test_a_ranking_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing"):
        ranking_of(Neuron(1, 2)).save(tmp_path / "missing" / "ranking.json")
    assert not list(tmp_path.iterdir())

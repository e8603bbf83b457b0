"""The page about edits: one file that loads nothing, shows what the reports hold, and nothing that a stranger wrote runs."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmedit.cases import CHANGING, STAYING, Probe
from mmedit.errors import OutputError
from mmedit.evaluation.intervals import Estimate
from mmedit.evaluation.judge import METRICS, ProbeResult
from mmedit.evaluation.page import write_report
from mmedit.evaluation.page_data import ADDED, GONE, KEPT, word_diff
from mmedit.evaluation.report import EditReport
from mmedit.evaluation.wording import GROUPS, KINDS
from mmedit.neuron import Neuron, NeuronRanking, RankedNeuron
from mmedit.printable import printable
from mmedit.requests import Prompt

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = "<img src=x onerror=alert(1)>\"'&</script><!-- \x1b[2J\x00\u202e\udc80 ]]>"


def picture(number: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (number % 256, number // 256, 90))


def result(kind: Any, number: int, right: bool | None = True, **fields: Any) -> ProbeResult:
    """A probe of one kind, with a picture and a number of its own in every text."""
    before, after = f"A cat and {number} boats", f"A dog and {number} boats" if right else f"A cat or {number} boats"
    probe = Probe(kind, None if kind == "text_only" else picture(number), label=f"{number}.png")
    given = {"probe": probe, "before": before, "after": after, "expected": after, "right": right, "scores": {METRICS[kind]: float(bool(right))}}  # fmt: skip
    return ProbeResult(**{**given, **fields})


def report(*results: ProbeResult, name: str = "cat→dog") -> EditReport:
    return EditReport(name, "a model", results)


def data_of(page: Path) -> dict[str, Any]:
    """The data that a page's script reads."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])  # type: ignore[index]


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text that is seen without a script."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1][0] not in ("script", "style"):
            self.text += data


Browse = Callable[[str], str]


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Browse:
    """Open a page in a browser and give what its scripts made of it, as HTML."""
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    home = tmp_path_factory.mktemp("browser")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"

    def run(text: str) -> str:
        (home / "page.html").write_text(text)
        command = [str(CHROMIUM), *options.split(), f"--user-data-dir={home}", "--dump-dom", f"file://{home}/page.html"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


def value_in(browse: Browse, page: Path, script: str) -> Any:
    """What a script returns in a page, whose policy is taken away for it."""
    text, n = re.subn(r"<meta http-equiv=[^>]*>", "", page.read_text())
    assert n == 1
    told = f"document.documentElement.dataset.value = JSON.stringify((() => {{ {script} }})())"
    seen = browse(text.replace("</body>", f"<script>{told}</script></body>"))
    return json.loads(html.unescape(re.search(r'<html[^>]* data-value="([^"]*)"', seen)[1]))  # type: ignore[index]


def test_whatever_strangers_write_is_text(tmp_path: Path, browse: Browse) -> None:
    nasty = replace(
        result("related", 1), probe=Probe("related", picture(1), Prompt(NASTY, NASTY), NASTY, label=NASTY),
        before=NASTY, after=NASTY + " dog", expected=NASTY, case=NASTY, scores={NASTY: 1.0},
    )  # fmt: skip
    ranking = NeuronRanking((RankedNeuron(Neuron(0, 1), 1.0, (NASTY,)),), NASTY, 1, (1.0,))
    made = EditReport(NASTY, NASTY, (nasty, result("unrelated", 2)), {NASTY: NASTY, "failures": {NASTY: NASTY}})
    write_report(page := tmp_path / "page.html", [made, replace(made, name=NASTY + "2")], NASTY, ranking)
    raw = page.read_bytes().decode()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", raw)
    tags = Tags(page)
    assert [tag for tag, _ in tags.tags].count("script") == 2 and "img" not in dict(tags.tags)
    assert not {name for _, attributes in tags.tags for name in attributes if name.startswith("on")}
    assert printable(NASTY) in tags.text
    assert data_of(page)["probes"][0]["name"] == data_of(page)["probes"][0]["before"] == printable(NASTY)
    seen = value_in(browse, page, """
        const card = document.querySelector(".card");
        document.querySelector("[value=table]").click();
        return {card: card.textContent, row: document.querySelector(".probes tbody tr").textContent,
                images: [...document.images].map((image) => image.src.slice(0, 10)),
                handlers: document.querySelectorAll("[onerror]").length, scripts: document.scripts.length};
    """)  # fmt: skip
    assert seen["card"].count(printable(NASTY)) >= 4 and seen["row"].count(printable(NASTY)) >= 4
    assert set(seen["images"]) == {"data:image"} and not seen["handlers"] and seen["scripts"] == 3


def test_the_page_loads_nothing_and_lets_no_other_script_run(tmp_path: Path, browse: Browse) -> None:
    write_report(page := tmp_path / "page.html", [report(result("edit", 1), result("text_only", 2))])
    text = page.read_text()
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert not [a for _, a in Tags(page).tags if {"src", "href", "srcset", "action", "data"} & set(a)]
    seen = browse(text.replace("</body>", "<script>document.body.id = 'foreign'</script></body>"))
    assert seen.count('<figure class="card">') == 2 and 'id="foreign"' not in seen
    assert "<ins>dog</ins>" in seen and "<del>cat</del>" in seen
    assert '<figure class="card">' not in browse(text.replace('"use strict";', '"use strict"; '))


def test_each_picture_is_there_once_and_small(tmp_path: Path) -> None:
    picture(1).save(file := tmp_path / "same.png")
    large = Image.effect_noise((1600, 800), 90).convert("RGB")
    images = [file, str(file), picture(1), picture(2), large, None]
    results = [result("related" if image else "text_only", i) for i, image in enumerate(images)]
    results = [replace(r, probe=replace(r.probe, image=image)) for r, image in zip(results, images, strict=True)]
    write_report(page := tmp_path / "page.html", [report(*results), report(*results, name="again")])
    assert page.read_text().count("data:image/") == 3
    data = data_of(page)
    assert [probe["picture"] for probe in data["probes"]] == [0, 0, 0, 1, 2, None]
    kinds, sizes = [], []
    for shown in data["pictures"]:
        kind, _, content = shown["uri"].partition(";base64,")
        embedded = Image.open(io.BytesIO(base64.b64decode(content)))
        assert embedded.size == (shown["width"], shown["height"])
        kinds.append(kind)
        sizes.append(embedded.size)
        if embedded.size == (8, 8):
            assert embedded.convert("RGB").tobytes() == picture(len(kinds)).tobytes()
    assert kinds == ["data:image/png", "data:image/png", "data:image/jpeg"] and sizes == [(8, 8), (8, 8), (512, 256)]
    assert page.stat().st_size < 300_000


def test_many_probes_are_shown_some_at_a_time(tmp_path: Path, browse: Browse) -> None:
    results = [result("unrelated" if i % 2 else "related", i, i % 5 > 0) for i in range(1000)]
    write_report(page := tmp_path / "page.html", [report(*results)])
    seen = value_in(browse, page, """
        const names = (css) => [...document.querySelectorAll(css)].map((node) => node.textContent);
        const first = names(".kind[data-kind=related] footer"), nodes = document.querySelectorAll("*").length;
        document.querySelector(".kind[data-kind=related] .pager button:last-child").click();
        const second = names(".kind[data-kind=related] footer"), other = names(".kind[data-kind=unrelated] footer");
        document.querySelector("[value=table]").click();
        const rows = [];
        while (rows.length < 2000) {
            rows.push(...names(".probes tbody .thumb"));
            const next = document.querySelector("#table .pager button:last-child");
            if (next.disabled) break;
            next.click();
        }
        return {first, second, other, rows, nodes, images: document.images.length};
    """)  # fmt: skip
    assert seen["first"] == [f"{2 * i}.png" for i in range(24)] and seen["second"] == [f"{2 * i}.png" for i in range(24, 48)]  # fmt: skip
    assert seen["other"] == [f"{2 * i + 1}.png" for i in range(24)]
    assert seen["rows"] == [f"{i}.png" for i in range(1000)]
    assert seen["nodes"] < 2000 and seen["images"] < 120


def test_columns_sort_as_python_does(tmp_path: Path, browse: Browse) -> None:
    kls = [0.5, None, 2e-5, 10.0, 0.5, 12.0, None, 0.5, 9.0, -1.0]
    results = []
    for i, value in enumerate(kls):
        name = f"picture {120 - 7 * i}.png" if i % 2 else f"Bild {i}.png"
        made = result("unrelated", i, i % 3 > 0, scores={} if value is None else {"kl_image": value})
        results.append(replace(made, probe=replace(made.probe, label=name)))
    names = [r.probe.label for r in results]
    write_report(page := tmp_path / "page.html", [report(*results)])
    seen = value_in(browse, page, """
        document.querySelector("[value=table]").click();
        const names = () => [...document.querySelectorAll(".probes .thumb")].map((node) => node.textContent);
        const order = () => [...document.querySelectorAll(".probes th")].map((head) => head.getAttribute("aria-sort"));
        const found = {start: [names(), order()]};
        for (const key of ["kl", "name", "verdict"])
            for (const way of ["up", "down"]) {
                const button = document.querySelector(`[data-key=${key}] button`);
                button.focus();
                found[`${key} ${way}`] = [document.activeElement === button && (button.click(), names()), order()];
            }
        return found;
    """)  # fmt: skip
    columns = [a["data-key"] for tag, a in Tags(page).tags if tag == "th" and "data-key" in a]
    assert seen["start"] == [names, [None] * len(columns)]

    def ordered(key: Callable[[int], Any], down: bool, last: Sequence[int] = ()) -> list[str]:
        first = sorted((i for i in range(len(kls)) if i not in last), key=key, reverse=down)
        return [names[i] for i in [*first, *last]]

    def number(i: int) -> float:
        return kls[i] if kls[i] is not None else 0.0  # type: ignore[return-value]

    missing = [i for i, value in enumerate(kls) if value is None]
    for down, way in ((False, "up"), (True, "down")):
        assert seen[f"kl {way}"][0] == ordered(number, down, missing)
        assert seen[f"name {way}"][0] == ordered(lambda i: (names[i][0], int(re.findall(r"\d+", names[i])[0])), down)
        assert seen[f"verdict {way}"][0] == ordered(lambda i: bool(i % 3), down)  # changed, unchanged
        for key in ("kl", "name", "verdict"):
            state = {key: "descending" if down else "ascending"}
            assert seen[f"{key} {way}"][1] == [state.get(column) for column in columns]


def test_filters_leave_what_they_say(tmp_path: Path, browse: Browse) -> None:
    rights = {1: True, 2: False, 3: None, 4: True, 5: False}
    kinds = {1: "related", 2: "related", 3: "related", 4: "unrelated", 5: "unrelated"}
    write_report(page := tmp_path / "page.html", [report(*(result(kinds[i], i, rights[i]) for i in rights))])
    seen = value_in(browse, page, """
        const form = document.querySelector(".toolbar");
        const set = (name, value) => {
            const field = form[name];
            field instanceof RadioNodeList ? [...field].find((f) => f.value === value).click() : (field.value = value, field.dispatchEvent(new Event("input", {bubbles: true})));
        };
        const shown = () => [...document.querySelectorAll(".kind:not([hidden]) footer")].map((node) => parseInt(node.textContent));
        const found = {all: shown()};
        for (const [name, value] of [["outcome", "true"], ["outcome", "false"], ["outcome", "null"], ["kind", "unrelated"], ["words", "A CAT AND 3"], ["words", "2.png"]]) {
            set(name, value);
            found[`${name} ${value}`] = [shown(), form.found.value];
            set(name, "");
        }
        set("kind", "related"); set("outcome", "false");
        return {...found, both: shown()};
    """)  # fmt: skip
    assert seen["all"] == [1, 2, 3, 4, 5]
    assert seen["outcome true"] == [[1, 4], "2 of 5"] and seen["outcome false"] == [[2, 5], "2 of 5"]
    assert seen["outcome null"] == [[3], "1 of 5"] and seen["kind unrelated"] == [[4, 5], "2 of 5"]
    assert seen["words A CAT AND 3"] == [[3], "1 of 5"] and seen["words 2.png"] == [[2], "1 of 5"]
    assert seen["both"] == [2]


def test_reports_stand_side_by_side(tmp_path: Path, browse: Browse) -> None:
    """What was asked alike is one card; what only one was asked, or what was asked twice, is not lost."""
    same, twice, own = result("related", 1), result("unrelated", 2), result("text_only", 3)
    first = report(same, twice, twice, name="first")
    second = report(replace(same, after="A cat and 1 boats", right=False), own, twice, name="second")
    write_report(page := tmp_path / "page.html", [first, second])
    assert len(data_of(page)["probes"]) == 4 and len(data_of(page)["results"]) == 6
    seen = value_in(browse, page, """
        const cards = () => [...document.querySelectorAll(".kind:not([hidden]) .card")].map((card) => [...card.querySelectorAll(".result .label:first-child")].map((node) => node.textContent).filter((text) => text !== "expected"));
        const visible = () => [...document.querySelectorAll(".metrics thead th")].filter((node) => !node.hidden).map((node) => node.textContent);
        const both = cards(), heads = visible();
        document.querySelector("input[name=report][value='0']").click();
        return {both, heads, one: cards(), head: visible()};
    """)  # fmt: skip
    assert seen["both"] == [["first", "second"], ["first", "second"], ["first"], ["second"]]
    assert seen["one"] == [["second"], ["second"], ["second"]]
    assert set(seen["heads"]) == {"Metric", "first", "second"} and set(seen["head"]) == {"Metric", "second"}


def test_columns_are_those_that_tell_probes_apart(tmp_path: Path) -> None:
    def columns(*reports: EditReport) -> set[str | None]:
        write_report(page := tmp_path / "page.html", reports)
        return {
            attributes["data-key"] for tag, attributes in Tags(page).tags if tag == "th" and "data-key" in attributes
        }

    plain = {"name", "before", "after", "verdict", "kind", "prompt"}
    one, other = result("edit", 1, case="a"), result("unrelated", 2, case="b", scores={"kl_image": 0.1})
    assert columns(report(one)) == plain
    assert columns(report(one), report(one)) == plain | {"edit"}
    assert columns(report(one, other)) == plain | {"case", "kl"}


def test_every_metric_is_told_with_its_interval(tmp_path: Path) -> None:
    scores = {name: 0.25 for _, _, members in GROUPS for name in members} | {"retention_after_ten": 0.75}
    made = report(*(result("unrelated", i, scores={**scores, "reliability": i % 2}) for i in range(4)))
    write_report(page := tmp_path / "page.html", [made])
    rows = dict(re.findall(r'<th scope="row"><code>(\w+)</code>(.*?)</tr>', page.read_text(), re.DOTALL))
    assert set(rows) == set(made.metrics)
    for name, estimate in made.metrics.items():
        row = re.sub("<[^>]*>", "", rows[name])
        assert f"{estimate.value:.3f}" in row and f"n = {estimate.n}" in row
        assert f"{estimate.low:.3f} to {estimate.high:.3f}" in row
        bar = [float(x) for x in re.findall(r"(?:left|right):([\d.]+)%", rows[name])]
        if not name.startswith("kl_"):
            assert bar == pytest.approx([100 * estimate.low, 100 - 100 * estimate.high, 100 * estimate.value], abs=0.01)
    assert "lower is better" in rows["leakage"] and "lower is better" not in rows["reliability"]
    easyedit = page.read_text().split("<h3>EasyEdit&#39;s numbers</h3>")[1].split("</table>")[0]
    assert re.findall(r"<code>(\w+)</code>", easyedit) == [
        "rewrite_acc", "rephrase_acc", "image_rephrase_acc", "locality_acc", "multimodal_locality_acc", "portability_acc",
    ]  # fmt: skip


def test_kinds_and_groups_know_all_that_is_judged() -> None:
    assert tuple(KINDS) == CHANGING + STAYING
    assert {name for _, _, members in GROUPS for name in members} >= {*METRICS.values(), "leakage"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_model_has_a_page_too(tmp_path: Path, value: float) -> None:
    made = report(result("unrelated", 1, scores={"kl_image": value}), result("unrelated", 2, scores={"kl_image": 0.5}))
    vars(made)["metrics"] = {"kl_image": Estimate(value, value, value, 2), "kl_text": Estimate(0.5, 0.25, 1.0, 1)}
    write_report(page := tmp_path / "page.html", [made])
    assert data_of(page)["results"][0]["kl"] == str(value)
    ends = re.findall(r"(?:left|right):([^%]*)%", page.read_text().split("</style>")[1])
    assert [float(end) for end in ends if not 0 <= float(end) <= 100] == [] and {"25.0", "50.0"} <= set(ends)
    assert f"<b>{value:.3f}</b>" in page.read_text()


def test_neurons_are_listed_and_the_edited_are_marked(tmp_path: Path) -> None:
    records = tuple(RankedNeuron(Neuron(layer, 7), 1.5 / (layer + 1), (" cat", "<dog>")) for layer in range(3))
    ranking = NeuronRanking(records, "cat", 1, (0.25, -0.5, 4.0))
    write_report(page := tmp_path / "page.html", [report(result("edit", 1))], ranking=ranking, edited=[Neuron(1, 7)])
    rows = re.findall(r"<tr[^>]*><th scope=\"row\"><code>(L\d.U7)</code>(.*?)</tr>", page.read_text())
    assert [(name, "●" in rest) for name, rest in rows] == [("L0.U7", False), ("L1.U7", True), ("L2.U7", False)]
    assert [re.findall(r'class="number">([^<]*)<', rest) for _, rest in rows] == [["1.500", "0.250"], ["0.750", "-0.500"], ["0.500", "4.000"]]  # fmt: skip
    assert all("&lt;dog&gt;" in rest for _, rest in rows)


def test_the_page_appears_whole_or_not_at_all_and_is_the_same_each_time(tmp_path: Path) -> None:
    made = report(result("edit", 1), result("unrelated", 2, None))
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, [made])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    with pytest.raises(OutputError):
        write_report(tmp_path / "none" / "page.html", [made])
    gone = replace(made.results[0], probe=Probe("edit", tmp_path / "gone.png"))
    with pytest.raises(Exception, match="no such picture"):
        write_report(tmp_path / "c.html", [report(gone)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


words = st.lists(st.sampled_from(["a", "red", "cat", "dog", "boat", "猫", "狗", ",", "cat's", "\n"]), max_size=9).map(
    " ".join
)


@given(words, words)
def test_the_marks_tell_both_answers(before: str, after: str) -> None:
    def told(parts: list[tuple[int, str]], *changes: int) -> str:
        return "".join("".join(text for change, text in parts if change in changes).split())

    parts = word_diff(before, after)
    assert told(parts, KEPT, ADDED) == "".join(after.split()) and told(parts, KEPT, GONE) == "".join(before.split())
    assert all(change == KEPT for change, _ in word_diff(before, before))
    assert {change for change, _ in word_diff("一只红色的猫", "一只红色的狗")} == {KEPT, ADDED, GONE}

"""SBU Captions: lists, and downloads from a server on this computer that does everything wrong that servers do."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmedit.data.fetch import Answer, Limits, NoAnswer, fetch_in_order
from mmedit.data.picture_store import MANIFEST, PictureStore
from mmedit.data.sbu import PATIENCE, SbuReport, download_sbu, read_sbu_list, sample_order
from mmedit.errors import ImageError, OutputError, RequestError

QUICK = Limits(timeout=1, seconds=1.5, max_bytes=200_000, retries=1, wait=0.01)
CALM = Limits(timeout=30, seconds=60, retries=1, wait=0.01)
"""For servers that answer, on a computer that has much else to do."""


def picture(number: int, kind: str = "JPEG", size: tuple[int, int] = (24, 16)) -> bytes:
    """A picture whose bytes no other number gives."""
    data, noise = io.BytesIO(), random.Random(number).randbytes(3 * size[0] * size[1])
    Image.frombytes("RGB", size, noise).save(data, kind)
    return data.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A few bytes that say they are a large PNG."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


class Handler(BaseHTTPRequestHandler):
    """The path says what is wrong."""

    server: Server

    def do_GET(self) -> None:
        server, (what, _, number) = self.server, self.path.lstrip("/").partition("/")
        with server.lock:
            server.asked[self.path] += 1
        self.answer(what, number)

    def pause(self) -> None:
        """Be at work; over before the answer goes out, after which a client may ask the next at once."""
        server = self.server
        with server.lock:
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        time.sleep(server.pause)
        with server.lock:
            server.busy -= 1

    def answer(self, what: str, number: str) -> None:
        server, times = self.server, self.server.asked[self.path]
        if what.isdigit():
            self.give(int(what), b"no picture", "text/html")
        elif what == "ok":
            self.pause()
            self.give(200, picture(int(re.findall(r"\d+", number)[-1])))
        elif what in ("png", "gif", "webp", "tiff", "eps"):
            self.give(200, picture(int(number), what.upper()))
        elif what == "html":
            self.give(200, b"<html>This photo is private</html>" + number.encode(), "text/html")
        elif what == "half-a-picture":
            self.give(200, picture(int(number), size=(300, 300))[:700])
        elif what == "bomb":
            self.give(200, bomb(8000 * int(number), 8000))
        elif what == "huge":
            self.give(200, b"x" * 300_000)
        elif what == "pw":
            self.give(200, picture(50_000, "PNG"))
        elif what == "same":
            self.give(200, picture(60_000))
        elif what == "broken-off":
            self.give(200, picture(int(number)), length=5000)
        elif what == "silent":
            server.ending.wait(5)
        elif what == "trickle":
            self.send_response(200)
            self.end_headers()
            while not server.ending.wait(0.1):
                self.wfile.write(b"x")
                self.wfile.flush()
        elif what == "busy":
            self.give(503, b"later") if times == 1 else self.give(200, picture(int(number)))
        elif what == "wait":
            self.give(429, b"later", headers={"Retry-After": "1"}) if times == 1 else self.give(
                200, picture(int(number))
            )
        elif what == "to":
            self.give(302, b"x" * 50, headers={"Location": number if ":" in number else f"/{number}"})
        elif what == "endless":
            self.send_response(302)
            self.send_header("Location", f"/ok/{number}")
            self.end_headers()
            while not server.ending.is_set():
                self.wfile.write(b"x" * 65536)

    def give(
        self, status: int, data: bytes, kind: str = "image/jpeg", headers: dict[str, str] | None = None, length: int = 0
    ) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Type": kind, "Content-Length": str(length or len(data))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.lock, self.ending, self.pause = threading.Lock(), threading.Event(), 0.0
        self.busy = self.busiest = 0
        self.home = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.ending.set()
        server.shutdown()
        thread.join()


def write_list(folder: Path, urls: list[str]) -> Path:
    """The list as two text files."""
    (folder / "SBU_captioned_photo_dataset_captions.txt").write_text(
        "".join(f"caption {i}\n" for i in range(len(urls)))
    )
    path = folder / "SBU_captioned_photo_dataset_urls.txt"
    path.write_text("".join(f"{url}\n" for url in urls))
    return path


@pytest.fixture
def good(server: Server, tmp_path: Path) -> Path:
    """A list of 40 pictures."""
    return write_list(tmp_path, [f"{server.home}/ok/{i}" for i in range(40)])


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The last line on each address."""
    lines = [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]
    return {line["url"]: line for line in lines[1:]}


def names(report: SbuReport) -> list[str]:
    return [p.path.name for p in report.pictures]


# What addresses give

CASES = {
    "/ok/1": "picture", "/png/2": "picture", "/gif/3": "picture", "/webp/4": "picture", "/ok/..%2F..%2F5.jpg": "picture",
    "/to/ok/6": "picture", "/to/to/ok/7": "picture", "/busy/8": "picture", "/endless/9": "picture",
    "/404/": "dead", "/403/": "dead", "/410/": "dead", "/204/": "dead", "/to/404/": "dead",
    "/to/to/to/to/to/to/to/ok/5": "dead", "/to/file:///etc/passwd": "dead", "/to/ftp://127.0.0.1/x": "dead",
    "/500/": "unreachable", "/broken-off/1": "unreachable", "/silent/1": "unreachable", "/trickle/1": "too slow",
    "/huge/1": "too large", "/bomb/1": "too large", "/bomb/2": "too large", "/bomb/3": "too large",
    "/html/1": "not a picture", "/half-a-picture/1": "not a picture", "/tiff/1": "not a picture", "/eps/1": "not a picture",
    "/to/pw/photo_unavailable_l.png": "placeholder",
    "/same/1": "placeholder", "/same/2": "placeholder", "/same/3": "placeholder",
}  # fmt: skip
ELSEWHERE = {
    url: "not http" for url in ("file:///etc/passwd", "ftp://127.0.0.1/1.jpg", "/etc/passwd", "http://", "http://[", "")
}


@pytest.mark.parametrize(("seed", "threads"), [(0, 4), (1, 1)])
def test_what_each_address_gives(server: Server, tmp_path: Path, seed: int, threads: int) -> None:
    """Only whole pictures are kept, under names that no address chooses; all else is counted and written down."""
    expected = {server.home + path: outcome for path, outcome in CASES.items()} | ELSEWHERE
    folder = tmp_path / "deep" / "sbu"
    path = write_list(tmp_path, list(expected))
    report = download_sbu(path, folder, 100, seed, threads, QUICK)
    kept = {url for url, outcome in expected.items() if outcome == "picture"}
    assert {p.url for p in report.pictures} == kept
    assert Counter(report.skipped) == Counter(expected.values()) - Counter(picture=99)
    known = {url: line["outcome"] for url, line in manifest(folder).items()}
    assert known == {
        u: o for u, o in expected.items() if known.get(u) or o != "unreachable"
    }  # a last unreachable one is left open
    assert {p.name for p in folder.iterdir()} == {MANIFEST, *names(report)}
    for kind in ("tiff", "eps"):  # Pillow would open them
        assert manifest(folder)[f"{server.home}/{kind}/1"]["detail"] == "none of JPEG, PNG, GIF, WEBP"
    for found in report.pictures:
        index = list(expected).index(found.url)
        assert found.caption == f"caption {index}"
        assert re.fullmatch(rf"{index:07d}\.(jpg|png|gif|webp)", found.path.name) and found.path.parent == folder
        with Image.open(found.path) as image:
            image.load()
    assert f"{len(kept)} of 100 pictures; skipped {len(expected) - len(kept)}: " in str(report)
    assert not (tmp_path / "9.jpg").exists() and not [t for t in threading.enumerate() if t.name.startswith("fetch")]


def test_the_tests_server_and_the_limits_are_what_they_seem(server: Server) -> None:
    urls = [server.home + path for path in ("/ok/1", "/broken-off/2", "/huge/3", "/trickle/4", "/silent/5")]
    with closing(fetch_in_order(urls, QUICK)) as answers:
        first, *rest = answers
    assert first == Answer(picture(1), urls[0])
    assert [a.reason for a in rest if isinstance(a, NoAnswer)] == [
        "unreachable",
        "too large",
        "too slow",
        "unreachable",
    ]
    assert isinstance(rest[-1], NoAnswer) and "Timeout" in rest[-1].detail
    assert server.asked["/broken-off/2"] == server.asked["/silent/5"] == 1 + QUICK.retries
    assert server.asked["/trickle/4"] == server.asked["/huge/3"] == 1


def test_a_server_that_says_when_to_come_back_is_asked_then(server: Server) -> None:
    begun = time.monotonic()
    with closing(fetch_in_order([f"{server.home}/wait/3"], CALM)) as answers:
        assert next(answers) == Answer(picture(3), f"{server.home}/wait/3")
    assert time.monotonic() - begun >= 1


@pytest.mark.parametrize("threads", [1, 3])
def test_few_are_asked_at_a_time_and_few_ahead(server: Server, threads: int) -> None:
    server.pause = 0.02
    urls = [f"{server.home}/ok/{i}" for i in range(40)]
    drawn: list[str] = []
    with closing(fetch_in_order((drawn.append(url) or url for url in urls), CALM, threads)) as answers:
        taken = [next(answers) for _ in range(10)]
    assert taken == [Answer(picture(i), urls[i]) for i in range(10)]  # in order, whoever is done first
    assert server.busiest <= threads and len(drawn) < 10 + 2 * threads
    assert not [t for t in threading.enumerate() if t.name.startswith("fetch")]


# The sample


def test_the_order_is_a_permutation_and_the_same_for_ever() -> None:
    assert sample_order(10, 0) == [3, 7, 5, 2, 8, 4, 9, 1, 6, 0]
    assert sorted(sample_order(1000, 3)) == list(range(1000)) != sample_order(1000, 3)
    assert sample_order(1000, 3) != sample_order(1000, 4)


def test_the_sample_depends_on_the_seed_alone(good: Path, tmp_path: Path) -> None:
    samples = [names(download_sbu(good, tmp_path / str(i), n, seed, threads, CALM)) for i, (n, seed, threads) in enumerate([(12, 0, 4), (12, 0, 1), (7, 0, 3), (12, 1, 4)])]  # fmt: skip
    assert samples[0] == samples[1] == [f"{i:07d}.jpg" for i in sample_order(40, 0)[:12]]
    assert samples[2] == samples[0][:7] and samples[3] != samples[0]


def test_both_forms_of_the_list_give_the_same(tmp_path: Path) -> None:
    captions = ["a dog", "two\u2028lines? \x85 no", "", "Käse 猫"]
    urls = [f"http://a/{i}.jpg" for i in range(4)]
    texts = write_list(tmp_path, urls)
    (tmp_path / "SBU_captioned_photo_dataset_captions.txt").write_text("\n".join(captions), encoding="utf-8")
    table = tmp_path / "sbu-captions-all.json"
    table.write_text(json.dumps({"image_urls": urls, "captions": captions, "user_ids": ["1"] * 4}))
    assert read_sbu_list(texts) == read_sbu_list(table) == (urls, captions)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("urls.csv", "http://a/1.jpg", "urls.txt or .json"),
        ("x_urls.txt", "http://a/1.jpg", "x_captions.txt"),
        ("x.json", "[]", "cannot read this list"),
        ("x.json", "{", "cannot read this list"),
        ("x.json", '{"captions": []}', "no 'image_urls'"),
        ("x.json", '{"image_urls": [], "captions": []}', "0 addresses and 0 captions"),
        ("x.json", '{"image_urls": ["http://a"], "captions": []}', "1 addresses and 0 captions"),
        ("x.json", '{"image_urls": [1], "captions": ["a"]}', "lists of texts"),
        ("x.json", '{"image_urls": "a", "captions": "b"}', "lists of texts"),
        ("x.json", None, "cannot read this list"),
    ],
)
def test_a_list_of_another_form_is_told(tmp_path: Path, name: str, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=told):
        download_sbu(tmp_path / name, tmp_path / "sbu")
    assert not (tmp_path / "sbu").exists()


# Going on


def test_more_are_fetched_without_asking_again(good: Path, server: Server, tmp_path: Path) -> None:
    first = download_sbu(good, tmp_path / "sbu", 5, threads=1, limits=CALM)
    before = server.asked.copy()
    assert download_sbu(good, tmp_path / "sbu", 5, limits=CALM) == first and server.asked == before
    assert names(download_sbu(good, tmp_path / "sbu", 30, limits=CALM))[:5] == names(first)
    assert all(server.asked[f"/ok/{p.url.rsplit('/')[-1]}"] == 1 for p in first.pictures)


@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_a_run_that_is_killed_goes_on_to_the_same_end(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    paths = ["/ok/{}", "/404/{}", "/ok/1{}", "/html/{}", "/same/{}", "/to/ok/2{}"]
    path = write_list(tmp_path, [server.home + p.format(i) for i in range(8) for p in paths])
    whole = download_sbu(path, tmp_path / "whole", 12, limits=CALM)

    with monkeypatch.context() as patch:
        left, write = [after], PictureStore._write

        def dying(store: PictureStore, record: dict[str, Any]) -> None:
            if not left[0]:
                with (store.folder / MANIFEST).open("a") as file:
                    file.write(json.dumps(record)[:40])  # the line that the kill cut short
                raise KeyboardInterrupt
            left[0] -= 1
            write(store, record)

        patch.setattr(PictureStore, "_write", dying)
        with pytest.raises(KeyboardInterrupt):
            download_sbu(path, tmp_path / "sbu", 12, limits=CALM)
    written = whole_lines(tmp_path / "sbu")
    before = server.asked.copy()
    resumed = download_sbu(path, tmp_path / "sbu", 12, limits=CALM)
    assert names(resumed) == names(whole) and resumed.skipped == whole.skipped
    assert manifest(tmp_path / "sbu") == manifest(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "sbu").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    assert len(written) == after
    assert [server.asked[path] for path in written] == [before[path] for path in written]


def whole_lines(folder: Path) -> list[str]:
    """The paths of the addresses in whole lines."""
    lines = (folder / MANIFEST).read_text().split("\n")[1:]
    return [re.sub("http://[^/]*", "", json.loads(line)["url"]) for line in lines if line.endswith("}")]


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: path.write_bytes(b"x"), lambda path: path.write_bytes(picture(999))]
)
def test_a_picture_that_is_gone_or_spoilt_is_fetched_again(
    good: Path, server: Server, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    first = download_sbu(good, tmp_path / "sbu", 6, limits=CALM)
    lost, content = first.pictures[2], first.pictures[2].path.read_bytes()
    spoil(lost.path)
    assert download_sbu(good, tmp_path / "sbu", 6, limits=CALM) == first
    assert lost.path.read_bytes() == content and server.asked[lost.url.removeprefix(server.home)] == 2


def test_bytes_that_come_again_in_a_later_run_take_the_first_picture_back(server: Server, tmp_path: Path) -> None:
    path = write_list(tmp_path, [f"{server.home}/{what}/{i}" for i in range(6) for what in ("ok", "same")])
    order = sample_order(12, 0)
    n = next(k for k, i in enumerate(order) if i % 2) + 1  # up to the first of them
    first = download_sbu(path, tmp_path / "sbu", n, limits=CALM)
    assert "/same/" in first.pictures[-1].url and first.skipped == {}
    second = download_sbu(path, tmp_path / "sbu", 12, limits=CALM)
    assert len(second.pictures) == 6 and second.skipped == {"placeholder": 6}
    assert not first.pictures[-1].path.exists()
    assert download_sbu(path, tmp_path / "sbu", 12, limits=CALM) == second


def test_a_network_that_is_down_uses_no_address_up(server: Server, tmp_path: Path) -> None:
    dead = "http://127.0.0.1:1"  # nobody listens there
    path = write_list(tmp_path, [f"{dead}/{i}.jpg" for i in range(PATIENCE + 5)])
    with pytest.raises(ImageError, match=f"{PATIENCE} addresses in a row cannot be reached"):
        download_sbu(path, tmp_path / "sbu", 3, limits=Limits(retries=0))
    assert manifest(tmp_path / "sbu") == {}


def test_single_unreachable_addresses_are_not_asked_again(server: Server, tmp_path: Path) -> None:
    path = write_list(tmp_path, [f"{server.home}/{what}/{i}" for i in range(8) for what in ("ok", "broken-off")])
    first = download_sbu(path, tmp_path / "sbu", 4, threads=1, limits=CALM)
    before = {p: n for p, n in server.asked.items() if server.home + p in manifest(tmp_path / "sbu")}
    again = download_sbu(path, tmp_path / "sbu", 8, threads=1, limits=CALM)
    assert first.skipped["unreachable"] and again.skipped["unreachable"] >= first.skipped["unreachable"]
    assert {p: server.asked[p] for p in before} == before


# Errors


def test_a_folder_holds_one_sample(good: Path, tmp_path: Path) -> None:
    download_sbu(good, tmp_path / "sbu", 2, limits=CALM)
    with pytest.raises(OutputError, match="holds another sample"):
        download_sbu(good, tmp_path / "sbu", 2, seed=1, limits=CALM)
    (tmp_path / "other").mkdir()
    with pytest.raises(OutputError, match="holds another sample"):
        download_sbu(write_list(tmp_path / "other", ["http://127.0.0.1:1/x.jpg"]), tmp_path / "sbu", 2, limits=CALM)


def test_a_manifest_cannot_name_files_elsewhere(good: Path, tmp_path: Path) -> None:
    """A line that says so is not believed, though the file be there and have that digest."""
    report = download_sbu(good, tmp_path / "sbu", 3, limits=CALM)
    secret = tmp_path / "0000001.jpg"
    report.pictures[0].path.rename(secret)
    file = tmp_path / "sbu" / MANIFEST
    file.write_text(file.read_text().replace(report.pictures[0].path.name, "../0000001.jpg"))
    again = download_sbu(good, tmp_path / "sbu", 3, limits=CALM)
    assert again == report and secret.exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n": 0}, "n=0"),
        ({"threads": 0}, "threads=0"),
        ({"n": -3}, "n=-3"),
    ],
)
def test_bad_numbers_are_told(good: Path, tmp_path: Path, options: dict[str, int], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        download_sbu(good, tmp_path / "sbu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["timeout", "seconds", "max_bytes", "retries", "wait"])
def test_limits_are_checked(name: str) -> None:
    with pytest.raises(RequestError, match=name):
        Limits(**{name: -1})


def test_a_list_without_a_picture_is_told(server: Server, tmp_path: Path) -> None:
    path = write_list(tmp_path, [f"{server.home}/404/{i}" for i in range(3)])
    with pytest.raises(ImageError, match="no address of this list gives a picture") as caught:
        download_sbu(path, tmp_path / "sbu", limits=CALM)
    assert "'dead': 3" in str(caught.value)

"""Fetching many small files from the web: a few at a time, in order, with retries and limits."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from mmedit import __version__
from mmedit.errors import RequestError

HEADERS = {"User-Agent": f"mmedit/{__version__}", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
BUSY = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that may be otherwise a moment later."""
LONGEST_WAIT = 60.0
MAX_REDIRECTS = 5


@dataclass(frozen=True)
class Limits:
    """How long and how much a download may take."""

    timeout: float = 10.0
    """Seconds for connecting, and for each wait for more bytes."""
    seconds: float = 60.0
    """Seconds for one whole answer, however it trickles."""
    max_bytes: int = 20_000_000
    retries: int = 3
    """Further attempts where the server is busy, silent, or breaks off."""
    wait: float = 1.0
    """Seconds before the first retry; doubled for each further one. A server's Retry-After counts if it is longer."""

    def __post_init__(self) -> None:
        for name, least in (("timeout", 0.001), ("seconds", 0.001), ("max_bytes", 1), ("retries", 0), ("wait", 0.0)):
            if getattr(self, name) < least:
                raise RequestError("no such limit", where=name, got=getattr(self, name), expected=f"{least} or more")


@dataclass(frozen=True)
class Answer:
    """What a URL gave."""

    data: bytes
    url: str
    """Where it came from in the end, after redirects."""


@dataclass(frozen=True)
class NoAnswer:
    """Why a URL gave nothing: `not http`, `dead`, `too large`, `too slow`, or `unreachable` in spite of all retries."""

    reason: str
    detail: str


class _Busy(Exception):
    """Worth a retry, not before so many seconds."""

    def __init__(self, detail: str, seconds: float = 0.0) -> None:
        super().__init__(detail)
        self.seconds = seconds


def fetch_in_order(
    urls: Iterable[str], limits: Limits | None = None, threads: int = 4
) -> Generator[Answer | NoAnswer, None, None]:
    """Fetch URLs with a few threads, and give what comes in the order of the URLs.

    URLs are read, and fetched, only a little ahead of what is taken; closing the iterator ends the threads.

    Args:
        urls: `http` and `https`; others are not opened, nor are redirects to others.
        limits: how long and how much; the default `Limits` when None.
        threads: how many are fetched at a time.

    Returns:
        One answer, or the reason for none, per URL.

    Raises:
        RequestError: for a number of threads below 1.
    """
    if threads < 1:
        raise RequestError("nothing can be fetched by no thread", got=f"threads={threads}", expected="1 or more")
    return _in_order(urls, limits or Limits(), threads)


def _in_order(urls: Iterable[str], limits: Limits, threads: int) -> Generator[Answer | NoAnswer, None, None]:
    fetcher = _Fetcher(limits)
    pool, ahead = ThreadPoolExecutor(threads, thread_name_prefix="fetch"), deque[Future[Answer | NoAnswer]]()
    try:
        for url in urls:
            ahead.append(pool.submit(fetcher.fetch, url))
            if len(ahead) >= 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        fetcher.stopped.set()
        pool.shutdown(cancel_futures=True)
        fetcher.close()


class _Fetcher:
    """Downloads over connections that are shared by threads and kept open."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.stopped = limits, threading.Event()
        self._client = httpx.Client(headers=HEADERS, timeout=limits.timeout)

    def fetch(self, url: str) -> Answer | NoAnswer:
        """Fetch one URL, again where that may help."""
        why = "stopped"
        for attempt in range(self.limits.retries + 1):
            try:
                return self._fetch_once(url)
            except (httpx.InvalidURL, httpx.LocalProtocolError, ValueError) as error:  # no such host name, …
                return NoAnswer("dead", _told(error))
            except (_Busy, httpx.TransportError) as error:
                why = _told(error)
                pause = max(self.limits.wait * 2**attempt, getattr(error, "seconds", 0.0))
            if attempt < self.limits.retries and self.stopped.wait(min(pause, LONGEST_WAIT)):
                break
        return NoAnswer("unreachable", why)

    def _fetch_once(self, url: str) -> Answer | NoAnswer:
        begun = time.monotonic()
        if not _is_http(url):
            return NoAnswer("not http", "only http:// and https:// are opened")
        for _ in range(MAX_REDIRECTS + 1):
            with self._client.stream("GET", url) as response:
                if response.next_request is None:
                    return self._read(response, url, begun)
                url = str(response.next_request.url)
            if not _is_http(url):
                return NoAnswer("dead", f"redirected to {url}"[:200])
        return NoAnswer("dead", f"more than {MAX_REDIRECTS} redirects")

    def _read(self, response: httpx.Response, url: str, begun: float) -> Answer | NoAnswer:
        limits, data = self.limits, bytearray()
        if response.status_code in BUSY:
            raise _Busy(f"HTTP {response.status_code}", _seconds(response.headers.get("Retry-After", "")))
        if response.status_code != 200:
            return NoAnswer("dead", f"HTTP {response.status_code}")
        for part in response.iter_bytes():
            data += part
            if len(data) > limits.max_bytes:
                return NoAnswer("too large", f"more than {limits.max_bytes} bytes")
            if self.stopped.is_set() or time.monotonic() - begun > limits.seconds:
                return NoAnswer("too slow", f"not all there after {limits.seconds:g} seconds")
        return Answer(bytes(data), url)

    def close(self) -> None:
        self._client.close()


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _seconds(retry_after: str) -> float:
    """A Retry-After header in seconds; its other form, a date, counts as none."""
    return float(retry_after) if retry_after.isdecimal() else 0.0


def _told(error: Exception) -> str:
    return f"{type(error).__name__.lstrip('_')}: {error}"[:200]

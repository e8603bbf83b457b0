"""How much memory a piece of work needs at its peak, above what was in use when it began.

On CUDA PyTorch's allocator counts exactly. Elsewhere the resident size of the process is read every few milliseconds, which
is rough: what the process had freed and kept is used again unseen (it is given back to the system first, where the C library
can), and what is loaded once, such as a library, counts for the work that loads it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import torch

EVERY = 0.005  # seconds between two looks
STATM = Path("/proc/self/statm")


class Peak:
    """The most memory in use beyond that at the start, in bytes; 0 where it cannot be told."""

    def __init__(self) -> None:
        self.above = 0


@contextmanager
def peak_memory(on_cuda: bool) -> Iterator[Peak]:
    """Measure the peak of what is done inside.

    Args:
        on_cuda: what PyTorch allocates on CUDA, all devices together, each at its own peak; otherwise the resident process.

    Yields:
        The peak, which has its value afterwards.

    Example:
        >>> with peak_memory(on_cuda=False) as peak:
        ...     kept = torch.ones(1 << 24)
        >>> peak.above >= 0
        True
    """
    peak = Peak()
    with _on_cuda(peak) if on_cuda else _of_process(peak):
        yield peak


@contextmanager
def _on_cuda(peak: Peak) -> Iterator[None]:
    devices = range(torch.cuda.device_count())
    before = [torch.cuda.memory_allocated(device) for device in devices]
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    finally:
        most = [torch.cuda.max_memory_allocated(device) for device in devices]
        peak.above = sum(after - used for after, used in zip(most, before, strict=True))


@contextmanager
def _of_process(peak: Peak) -> Iterator[None]:
    resident = _reader()
    if resident is None:
        yield
        return
    with suppress(AttributeError, OSError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    before, done = resident(), threading.Event()

    def look() -> None:
        peak.above = max(peak.above, resident() - before)

    def watch() -> None:
        while not done.wait(EVERY):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        look()


def _reader() -> Callable[[], int] | None:
    """What tells the resident size of this process, in bytes."""
    if STATM.is_file():
        page = os.sysconf("SC_PAGE_SIZE")
        return lambda: int(STATM.read_text().split()[1]) * page
    try:
        process = import_module("psutil").Process()
    except ImportError:
        return None
    return lambda: int(process.memory_info().rss)

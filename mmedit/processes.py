"""Several processes that share one job, as `accelerate launch` or `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process and how many there are.

    Args:
        index: of this process, from 0.
        count: of all.
        device: on which this process puts its model; None where the user decides.

    Example:
        >>> Processes(1, 3).share(["a", "b", "c", "d", "e"])
        ['b', 'e']
    """

    index: int = 0
    count: int = 1
    device: str | None = None

    @classmethod
    def launched(cls) -> Processes:
        """What the launcher started: one process alone where there was no launcher.

        Raises:
            RequestError: if there are several and accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        import torch

        try:
            from accelerate import PartialState
        except ImportError as error:
            from mmedit.errors import RequestError

            raise RequestError(
                "several processes need accelerate", got=f"WORLD_SIZE={os.environ['WORLD_SIZE']}",
                do="pip install 'mmedit-vlm[auto]'",
            ) from error  # fmt: skip
        has_device = torch.accelerator.is_available()
        state = PartialState() if has_device else PartialState(cpu=True)
        return cls(state.process_index, state.num_processes, str(state.device) if has_device else "cpu")

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes the result."""
        return self.index == 0

    def share(self, jobs: Sequence[T]) -> list[T]:
        """This process's own part: every n-th job, so that each has as much to do."""
        return list(jobs[self.index :: self.count])

    def gather(self, found: list[Any]) -> list[Any]:
        """What all processes found, in order of processes; every process must call this as often as the others."""
        if self.count == 1:
            return found
        from accelerate.utils import gather_object

        return list(gather_object(found))


ALONE = Processes()
"""One process, which does everything."""

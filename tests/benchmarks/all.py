"""Every benchmark of speed that this machine can run: `python tests/benchmarks/all.py --json FILE`.

Each script runs in a process of its own, one after the other, and prints its rows as JSON lines, which are gathered here: a list of
`{"name", "ratio", "target", "met", "detail"}` in the file, and the README's table on the screen. A row that the machine cannot run has no ratio
and says why; a script that fails leaves a row that says how.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from mmedit.files import claimed, write_text

HERE = Path(__file__).parent
SCRIPTS = {
    "locating": [], "scoring": [], "batching": [], "procedure": [], "scorers": [], "solving": [], "applying": [], "evaluating": [],
    "growth": [], "bake": ["--repeats", "3"],
}  # fmt: skip
"""Each script with its own options."""
FIELDS = ("name", "ratio", "target", "met", "detail")
Row = dict[str, Any]


def rows_of(script: str, options: list[str]) -> Iterator[Row]:
    """The rows that a script prints, as they come."""
    command = [sys.executable, "-W", "ignore", str(HERE / f"{script}.py"), *options]
    last = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={"OMP_NUM_THREADS": "1", **os.environ}
    ) as process:
        for line in process.stdout or ():
            row = row_in(line)
            if row:
                yield row
            last = line.strip() or last
    if process.returncode:
        yield dict(zip(FIELDS, (script, None, None, False, {"failed": f"exit {process.returncode}, after: {last}"})))


def row_in(line: str) -> Row | None:
    """The row in a line of output, if there is one."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and set(FIELDS) == set(found) else None


def markdown(rows: list[Row]) -> str:
    """Rows as the README's table."""
    lines = ["| what | measured | target | met |", "|---|---|---|---|"]
    for row in rows:
        detail = row["detail"] or {}
        limit = "" if row["target"] is None else f"{detail.get('wanted', 'at most')} {row['target']:g}"
        met = {True: "yes", False: "no", None: ""}[row["met"]]
        figure = detail.get("skipped") or detail.get("failed") or f"{row['ratio']:.3g}"
        lines.append(f"| {row['name'].strip()} | {figure} | {limit} | {met} |")
    return "\n".join(lines)


def main(
    file: Annotated[Path | None, typer.Option("--json", help="Write all rows to this file.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(SCRIPTS)}.")] = None,
    quick: Annotated[
        bool, typer.Option(help="The smallest sizes, one round: a test of the scripts, not of speed.")
    ] = False,
    plotted: Annotated[Path | None, typer.Option("--plot", help="Draw growth to this file.")] = None,
) -> None:
    """Run every benchmark of speed."""
    unknown = set(only or ()) - set(SCRIPTS)
    if unknown:
        raise typer.BadParameter(f"no such script: {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    with claimed(file) if file else nullcontext():
        rows = []
        for script in only or SCRIPTS:
            if quick and script == "bake":  # it has no small size: it is about gigabytes
                continue
            options = [*SCRIPTS[script], *["--quick"] * quick]
            options += ["--plot", str(plotted)] if plotted and script == "growth" else []
            for row in rows_of(script, options):
                rows.append(row)
                print(markdown([row]).splitlines()[-1], file=sys.stderr, flush=True)
        print(markdown(rows))
        if file:
            write_text(file, json.dumps(rows, indent=1) + "\n")
    if any("failed" in (row["detail"] or {}) for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

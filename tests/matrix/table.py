"""The README's table of model types, made from the rows that the matrix tests check.

`python tests/matrix/table.py` writes it between the marks in README.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rows import ROWS, Row

README = Path(__file__).parent.parent.parent / "README.md"
BEGIN, END = "<!-- model types: begin, made by tests/matrix/table.py -->", "<!-- model types: end -->"
SCORES = {
    "direct": "exact",
    "norm": "exact with `final_norm=fold`: a norm stands behind W_out",
    "scale": "exact with `final_norm=fold`: W_out's output is scaled",
    "other": "approximate, and said so: post-norm layers, or several residual streams",
}


def table() -> str:
    """The table in Markdown."""
    works, refused = [row for row in ROWS if not row.refused], [row for row in ROWS if row.refused]
    lines = [
        f"Of the {len(ROWS)} model types with pictures and text that transformers has, {len(works)} can be located in, edited and patched: checked on a tiny",
        "model of each with random weights (`pytest tests/matrix`), not on published checkpoints.",
        "",
        "| model types | W_outs | contribution scores |",
        "|---|---|---|",
    ]
    for experts in (False, True):
        for way, words in SCORES.items():
            names = [row.name for row in works if has_experts(row) is experts and row.way == way]
            neurons = "dense, experts `L1.E3.U7`, shared `L1.S.U7`" if experts else "one a layer `L1.U7`"
            if names:
                lines.append(f"| {len(names)}: {listed(names)} | {neurons} | {words} |")
    refusals = "; ".join(f"{row.name} ({row.refused})" for row in sorted(refused, key=lambda row: row.name))
    return "\n".join([*lines, f"| refused: {refusals} | | |"])


def has_experts(row: Row) -> bool:
    return any(site.endswith("E") for site in row.sites.split())


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def between_marks(text: str) -> tuple[str, str, str]:
    """What stands before, between and after the marks of a text."""
    before, _, rest = text.partition(BEGIN)
    inner, _, after = rest.partition(END)
    return before, inner.strip("\n"), after


def main() -> None:
    before, _, after = between_marks(README.read_text(encoding="utf-8"))
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

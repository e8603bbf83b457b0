"""What a study found: a CSV file for each table, and one self-contained HTML page about everything."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmedit.files import write_text
from mmedit.printable import printable

if TYPE_CHECKING:
    from mmedit.analysis.study import Section, Study, Table

TEMPLATE = Path(__file__).with_name("report.html")
SHOWN = 200  # rows of a table on the page; its CSV file has all


def write_tables(study: Study, section: Section) -> None:
    """Write each table of a section as CSV into the study's folder.

    Raises:
        OutputError: if a file cannot be written.
    """
    for table in section.tables:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table.head)
        writer.writerows(table.rows)
        write_text(study.path(f"{table.name}.csv"), text.getvalue())


def write_report(study: Study, sections: Sequence[Section]) -> Path:
    """Write `report.html`: everything in it is escaped, what would be obeyed is written out, and nothing is loaded from elsewhere.

    Raises:
        OutputError: if it cannot be written.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, finalize=_printable)
    environment.filters["figure"] = _figure
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        title=f"Multi-modal neurons of {study.vlm.name or study.vlm.architecture.model_type}",
        subtitle=_subtitle(study),
        sections=[_shown(section) for section in sections],
    )
    path = study.path("report.html")
    write_text(path, page)
    return path


def _printable(value: Any) -> Any:
    return printable(value, keep="\n") if type(value) is str else value  # markup is a str of another type


def _subtitle(study: Study) -> str:
    a = study.vlm.architecture
    return (
        f"{len(study.pictures.pictures)} pictures: {study.pictures.name}. {a.model_type}, {a.n_layers} decoder layers of "
        f"{a.d_ffn} neurons. Methods and tables after Pan et al., ACL Findings 2024 (arXiv 2311.07470)."
    )


def _shown(section: Section) -> dict[str, Any]:
    return {
        "name": section.name, "title": section.title, "text": section.text, "refused": section.refused,
        "figures": [_embedded(path, caption) for path, caption in section.figures],
        "panels": [
            {"heading": heading, "pictures": [{"uri": _uri(image), "caption": caption} for caption, image in pictures]}
            for heading, pictures in section.panels
        ],
        "tables": [_table(table) for table in section.tables],
    }  # fmt: skip


def _table(table: Table) -> dict[str, Any]:
    rows = list(table.rows)
    return {"name": table.name, "head": table.head, "rows": rows[:SHOWN], "n": len(rows), "caption": table.caption}


def _embedded(path: Path, caption: str) -> dict[str, Any]:
    with Image.open(path) as image:
        wide = image.width > 1.9 * image.height
    return {
        "uri": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
        "caption": caption,
        "wide": wide,
    }


def _uri(image: Image.Image) -> str:
    image.save(buffer := io.BytesIO(), "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(value: Any) -> str:
    """A cell: numbers with three decimals, truths in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "n/a"
    return f"{value:.3f}" if isinstance(value, float) else str(value)

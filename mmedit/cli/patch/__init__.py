"""`mmedit patch …`: all that one does with patch files, one file per command."""

from __future__ import annotations

import typer

from mmedit.cli.patch import diff, show

app = typer.Typer(no_args_is_help=True)
app.command("show")(show.show)
app.command("diff")(diff.diff)


@app.callback()
def root() -> None:
    """All that one does with patch files."""

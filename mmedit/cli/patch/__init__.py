"""`mmedit patch …`: all that one does with patch files, one file per command."""

from __future__ import annotations

import typer

from mmedit.cli.patch import diff, hub, lora, merge, show, stack_check, verify

app = typer.Typer(no_args_is_help=True)
app.command("show")(show.show)
app.command("diff")(diff.diff)
app.command("merge")(merge.merge)
app.command("stack-check")(stack_check.stack_check)
app.command("to-lora")(lora.to_lora)
app.command("verify")(verify.verify)
app.command("push")(hub.push)
app.command("pull")(hub.pull)


@app.callback()
def root() -> None:
    """All that one does with patch files."""

"""The command line, one file per command. Results go to stdout, progress and complaints to stderr."""

from __future__ import annotations

import sys
import warnings

import typer

from mmedit.cli import analyse, bake, bench, caption, convert, demo, edit, eval, locate, options, patch, testbed
from mmedit.errors import MmeditError

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    help="Find and edit the neurons with which a multi-modal LLM names what it sees.",
)  # fmt: skip
app.command("demo")(demo.demo)
app.command("caption")(caption.caption)
app.command("locate")(locate.locate)
app.command("edit")(edit.edit)
app.command("eval")(eval.evaluate)
app.command("bench")(bench.bench)
app.command("analyse")(analyse.analyse)
app.command("bake")(bake.bake)
app.command("convert")(convert.convert)
app.add_typer(testbed.app, name="testbed", help="The checkpoints of IconWorld.")
app.add_typer(patch.app, name="patch", help="All that one does with patch files.")


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from mmedit import __version__

        typer.echo(f"mmedit {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; what the user can put right is told without a traceback, exit code 2."""
    warnings.showwarning = lambda message, category, *rest: options.say(f"warning: {message}", err=True)
    try:
        app()
    except MmeditError as error:
        options.say(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)

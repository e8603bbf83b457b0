"""`mmedit patch push` and `mmedit patch pull`: patches on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli import options as o

Repo = Annotated[str, typer.Argument(help="owner/name on the Hub.", show_default=False)]


def push(
    file: Annotated[Path, typer.Argument(help="Patch file.", show_default=False)], repo: Repo,
    branch: Annotated[str | None, typer.Option(help="Branch to commit to; the main one when left out.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="For a new repository.", show_default="the owner's default")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Upload a patch with a model card made from its metadata; log in with `hf auth login` or HF_TOKEN."""
    from mmedit import Patch
    from mmedit.patches.hub import push as upload

    address = upload(Patch.load(file), repo, revision=branch, private=private, create_pr=create_pr, message=message)
    if json:
        o.print_json({"repo": repo, "url": address})
        return
    o.say(f"pushed {file} to {address}")


def pull(
    repo: Repo,
    output: Annotated[Path, typer.Option("-o", "--output", help="Patch file to write.", show_default=False)],
    filename: Annotated[str | None, typer.Option(help="The patch's name in the repository; its only .safetensors file when left out.")] = None,
    revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Download a patch, check it, and save it."""
    from mmedit.files import claimed
    from mmedit.patches.hub import pull as download

    with claimed(output):
        patch = download(repo, revision, filename)
        patch.save(output)
    if json:
        o.print_json({"patch": str(output), "name": patch.name, "digest": patch.digest, "base": patch.base.model})
        return
    o.say(f"{patch.name}, on {patch.base.model}\nsaved {output} ({output.stat().st_size:,} bytes)")

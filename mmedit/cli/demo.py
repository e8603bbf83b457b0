"""`mmedit demo`: the main job on the shipped model and pictures, start to end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmedit.cli import options as o

if TYPE_CHECKING:
    from mmedit.evaluation.page import Group

N_RELATED, N_UNRELATED = 8, 16


def demo(
    source: Annotated[str, typer.Option(help="What the model says now.")] = "cat",
    target: Annotated[str, typer.Option(help="What it shall say instead.")] = "dog",
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the patch, the pictures and the page.")
    ] = Path("mmedit-demo"),
    json: o.Json = False,
) -> None:
    """Caption pictures, locate neurons, swap a concept, check what else changed, save the patch, write a page."""
    began = time.perf_counter()
    from mmedit.errors import RequestError
    from mmedit.files import make_folder
    from mmedit.testbed.world import NOUNS, render, scene

    if source not in NOUNS or target not in NOUNS:
        raise RequestError(
            "the demo's pictures show other things", got=f"{source} and {target}", expected=f"two of {', '.join(NOUNS)}"
        )
    folder = make_folder(output)
    drawn = [
        scene("benchmark", 1000 + i, include=source, arrangement=("one", "beside", "above")[i % 3])
        for i in range(1 + N_RELATED)
    ]
    drawn += [scene("benchmark", 2000 + i, exclude=(source,)) for i in range(N_UNRELATED)]
    pictures = make_folder(folder / "pictures")
    files = [pictures / f"{i:02}.png" for i in range(len(drawn))]
    for file, shown in zip(files, drawn, strict=True):
        render(shown)[0].save(file)
    result = swap(
        files, source, target, folder / f"{source}-to-{target}.safetensors", folder / "report.html", quiet=json
    )
    result["seconds"] = round(time.perf_counter() - began, 1)
    if json:
        o.print_json(result)
        return
    typer.echo(f"\nDone in {result['seconds']} s. Everything is in {folder.resolve()}:")
    for name, what in (
        ("report.html", "open it in a browser"),
        (f"{source}-to-{target}.safetensors", f"mmedit patch show {result['patch']}"),
        ("pictures/", f"mmedit caption {files[0]}"),
    ):
        typer.echo(f"  {name:<28} {what}")


def swap(files: Sequence[Path], source: str, target: str, patch_file: Path, page: Path, quiet: bool) -> dict[str, Any]:
    """The main job on an edit picture, related pictures and unrelated ones, told step by step."""
    import mmedit
    from mmedit.evaluation.metrics import is_swapped
    from mmedit.evaluation.page import write_page

    def say(text: str) -> None:
        if not quiet:
            typer.echo(text)

    vlm = o.load_model(o.DEFAULT_MODEL, None, "auto", None)
    say(
        f"model    {vlm.name}: {sum(p.numel() for p in vlm.model.parameters()) / 1e6:.1f} M parameters, {vlm.architecture.n_layers} layers"
    )
    request = mmedit.EditRequest(files[0], source, target)
    editor = mmedit.editors.MMNeurons.from_hparams(o.DEFAULT_MODEL)
    before = vlm.caption(files, batch_size=32)
    say(f"caption  {files[0]}: {before[0]!r}")
    ranking = editor.locate(vlm, request)
    say(f"locate   the neurons that write {source!r}:")
    for neuron, score, tokens in ranking[:5]:
        say(f"           {neuron!s:<9} score {score:6.3f}   writes {' '.join(tokens[:6])}")
    patch = editor.execute(vlm, request)
    with patch.applied(vlm):
        after = vlm.caption(files, batch_size=32)
    reverted = vlm.caption(files, batch_size=32) == before
    patch.save(patch_file)
    say(f"edit     {source} → {target}: {len(patch.neurons)} rows of W_out, {patch_file.stat().st_size:,} bytes")
    say(f"           before: {before[0]}\n           after:  {after[0]}")
    swapped = [is_swapped(*pair, source, target) for pair in zip(before, after, strict=True)]
    same = [old == new for old, new in zip(before, after, strict=True)]
    related, unrelated = slice(1, 1 + N_RELATED), slice(1 + N_RELATED, None)
    counts = {
        "edit": f"{sum(swapped[:1])} of 1",
        "related": f"{sum(swapped[related])} of {N_RELATED}",
        "unrelated": f"{sum(same[unrelated])} of {N_UNRELATED}",
    }
    say(
        f"check    edit picture swapped: {counts['edit']}\n         other pictures with a {source} swapped: {counts['related']}"
    )
    say(
        f"         unrelated captions unchanged: {counts['unrelated']}\n         reverted bit for bit, captions as before: {'yes' if reverted else 'NO'}"
    )
    figures = [
        (counts["edit"], "edit picture swapped"),
        (counts["related"], f"other pictures with a {source} swapped"),
        (counts["unrelated"], "unrelated captions unchanged"),
        (f"{len(patch.neurons)} rows", "of W_out changed"),
    ]
    groups = _groups(files, before, after, swapped, same, source, target)
    write_page(
        page,
        f"{source} → {target}",
        f"{vlm.name}, edited by MMNeurons from one picture",
        figures,
        groups,
        ranking.head(15),
        patch.neurons,
    )
    return {
        "patch": str(patch_file),
        "page": str(page),
        "before": before,
        "after": after,
        "counts": counts,
        "reverted": reverted,
    }


def _groups(
    files: Sequence[Path],
    before: Sequence[str],
    after: Sequence[str],
    swapped: Sequence[bool],
    same: Sequence[bool],
    source: str,
    target: str,
) -> list[Group]:
    """The page's three groups of pictures."""
    from mmedit.evaluation.page import Case, Group

    def cases(first: int, last: int, right: Sequence[bool], words: tuple[str, str]) -> list[Case]:
        return [
            Case(files[i], before[i], after[i], right[i], words[0] if right[i] else words[1])
            for i in range(first, last)
        ]

    return [
        Group("The edit picture", f"The only picture that the edit was made from: {source} shall become {target}.", cases(0, 1, swapped, ("swapped", "not swapped"))),
        Group(f"Other pictures with a {source}", "They were not used for the edit, and shall be swapped too.", cases(1, 1 + N_RELATED, swapped, ("swapped", "not swapped"))),
        Group("Unrelated pictures", f"They show no {source}; their captions shall stay.", cases(1 + N_RELATED, len(files), same, ("unchanged", "changed"))),
    ]  # fmt: skip

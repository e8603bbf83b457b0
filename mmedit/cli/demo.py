"""`mmedit demo`: the main job on the shipped model and pictures, start to end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmedit.cli import options as o

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
    from mmedit.files import make_folder, replacing
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
    patch_file, page = folder / f"{source}-to-{target}.safetensors", folder / "report.html"
    with o.claimed([patch_file, page]):
        for file, shown in zip(files, drawn, strict=True):
            with replacing(file) as part:
                render(shown)[0].save(part, "PNG")
        result = swap(files, source, target, patch_file, page, quiet=json)
        result["seconds"] = round(time.perf_counter() - began, 1)
    if json:
        o.print_json(result)
        return
    o.say(f"\nDone in {result['seconds']} s. Everything is in {folder.resolve()}:")
    for name, what in (
        ("report.html", "open it in a browser"),
        (f"{source}-to-{target}.safetensors", f"mmedit patch show {result['patch']}"),
        ("pictures/", f"mmedit caption {files[0]}"),
    ):
        o.say(f"  {name:<28} {what}")


def swap(files: Sequence[Path], source: str, target: str, patch_file: Path, page: Path, quiet: bool) -> dict[str, Any]:
    """The main job on an edit picture, related pictures and unrelated ones, told step by step."""
    import mmedit
    from mmedit.evaluation.page import write_report

    def say(text: str) -> None:
        if not quiet:
            o.say(text)

    vlm = o.load_model(o.DEFAULT_MODEL, None, "auto", None)
    n_parameters = sum(parameter.numel() for parameter in vlm.model.parameters())
    say(f"model    {vlm.name}: {n_parameters / 1e6:.1f} M parameters, {vlm.architecture.n_layers} layers")
    request = mmedit.EditRequest(files[0], source, target)
    editor = mmedit.editors.MMNeurons.from_hparams(o.DEFAULT_MODEL)
    say(f"caption  {files[0]}: {vlm.caption(files[0])[0]!r}")
    ranking = editor.locate(vlm, request)
    say(f"locate   the neurons that write {source!r}:")
    for neuron, score, tokens in ranking[:5]:
        say(f"           {neuron!s:<9} score {score:6.3f}   writes {' '.join(tokens[:6])}")
    patch = editor.execute(vlm, request)
    patch.save(patch_file)
    say(f"edit     {source} → {target}: {len(patch.neurons)} rows of W_out, {patch_file.stat().st_size:,} bytes")
    related, unrelated = files[1 : 1 + N_RELATED], files[1 + N_RELATED :]
    report = mmedit.evaluate(
        vlm, patch, requests=request, related=related, unrelated=unrelated, batch_size=32, cache=False
    )
    before, after = [result.before for result in report.results], [result.after for result in report.results]
    say(f"           before: {before[0]}\n           after:  {after[0]}")
    reverted = vlm.caption(files, batch_size=32) == before
    counts = {
        kind: f"{sum(result.right is True for result in of_kind)} of {len(of_kind)}"
        for kind in ("edit", "related", "unrelated")
        if (of_kind := [result for result in report.results if result.probe.kind == kind])
    }
    say(f"check    edit picture swapped: {counts['edit']}")
    say(f"         other pictures with a {source} swapped: {counts['related']}")
    say(f"         unrelated captions unchanged: {counts['unrelated']}")
    say(f"         reverted bit for bit, captions as before: {'yes' if reverted else 'NO'}")
    write_report(page, [report], f"{source} → {target}", ranking.head(15), patch.neurons)
    return {
        "patch": str(patch_file), "page": str(page), "before": before, "after": after, "counts": counts, "reverted": reverted,
    }  # fmt: skip

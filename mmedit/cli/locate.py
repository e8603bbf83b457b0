"""`mmedit locate`: which neurons write a word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmedit.cli import options as o


def locate(
    images: o.Images,
    source: Annotated[str | None, typer.Option(help="Word of the caption; every noun of every picture when left out.")] = None,
    k: Annotated[int, typer.Option(help="How many neurons.")] = 10,
    scorer: Annotated[str, typer.Option(help="contribution (the paper's), activation (Base), attribution (Mmns) or random.")] = "contribution",
    seed: Annotated[int, typer.Option(help="Of the random neurons.")] = 0,
    layer: Annotated[list[int] | None, typer.Option(help="Decoder layer to look at, from 0; may be given several times.")] = None,
    activation: Annotated[str, typer.Option(help="w_out_input, or act_fn for what the authors' code records.")] = "w_out_input",
    final_norm: Annotated[str, typer.Option(help="ignore, as the paper does, or fold.")] = "ignore",
    save: Annotated[Path | None, typer.Option(help="Write the ranking of --source to this JSON file.")] = None,
    model: o.Model = o.DEFAULT_MODEL, prompt: o.PromptText = None, prefix: o.Prefix = "",
    device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Rank the neurons that write a word of the caption."""
    from mmedit import locate_nouns, locate_word
    from mmedit.errors import RequestError
    from mmedit.scorers import as_scorer

    if save is not None and source is None:
        raise RequestError("--save needs --source", got="no source", do="name the word whose ranking is to be saved")
    with o.claimed([save]):
        o.check_images(images)
        method = as_scorer(scorer, seed)
        vlm = o.load_model(model, device, dtype, revision)
        asked = o.make_prompt(prompt, prefix)
        settings: dict[str, Any] = {
            "scorer": method, "k": k, "activation": activation, "final_norm": final_norm, "layers": layer or None,
        }  # fmt: skip
        if source is not None:
            rankings = [locate_word(vlm, images, source, asked, **settings)]
        else:
            rankings = [ranking for found in locate_nouns(vlm, images, asked, **settings) for ranking in found]
        if save is not None:
            rankings[0].save(save)
    if json:
        o.print_json([ranking.to_dict() for ranking in rankings])
        return
    for ranking in rankings:
        o.say(f"{ranking.source!r} in {', '.join(map(repr, ranking.captions))}, by {ranking.scorer}\n{ranking}\n")

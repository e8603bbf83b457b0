"""Swap a concept in a checkpoint, see on pictures of your own what else changed, and ship the edit in three forms.

    python examples/practitioner.py -o shipped
    python examples/practitioner.py --model llava-hf/llava-1.5-7b-hf --source cat --target dog \
        --edit cat.jpg another.jpg --related cats/ --unrelated holidays/ -o shipped

The folder then holds a patch, a PEFT adapter, a baked checkpoint, and a page that shows every caption before and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mmedit
from mmedit.files import make_folder
from mmedit.hparams import hparams_for
from mmedit.testbed.world import render, scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="iconworld-llava", help="shipped name, local folder or Hub id")
    parser.add_argument("--device", help="cpu, cuda, …; or auto to spread the model")
    parser.add_argument("--source", default="cat", help="what the model says now")
    parser.add_argument("--target", default="dog", help="what it shall say instead")
    parser.add_argument("--edit", nargs="+", help="pictures of the source to edit from; IconWorld's when left out")
    parser.add_argument("--related", nargs="+", default=[], help="other pictures of it")
    parser.add_argument("--unrelated", nargs="+", default=[], help="pictures without it")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder, made if it is not there")
    args = parser.parse_args()
    if args.edit is None:
        shown = [scene("benchmark", 1000 + i, include=args.source, arrangement="one") for i in range(6)]
        others = [scene("benchmark", 2000 + i, exclude=(args.source,)) for i in range(12)]
        args.edit, args.related = [render(shown[0])[0]], [render(one)[0] for one in shown[1:]]
        args.unrelated = [render(one)[0] for one in others]

    vlm, folder = mmedit.load(args.model, device=args.device), make_folder(args.output)
    editor = mmedit.editors.MMNeurons.from_hparams(hparams_for(args.model, "MMNeurons"), vlm)
    request = mmedit.EditRequest(args.edit, args.source, args.target)
    patch = editor.execute(vlm, request)  # the model is as it was
    report = mmedit.evaluate(vlm, patch, requests=request, related=args.related, unrelated=args.unrelated)
    print(report)
    for result in report.results:
        if result.right is False:
            print(f"{result.probe.kind}: {result.before!r} became {result.after!r}")
    report.to_html(folder / "report.html")

    file = folder / f"{args.source}-to-{args.target}.safetensors"
    patch.save(file)
    export = patch.to_lora(folder / "adapter", vlm)
    mmedit.bake(args.model, [patch], folder / "checkpoint")
    print(f"patch       {file}: {file.stat().st_size:,} bytes; mmedit.Patch.load, then .apply(vlm) and .revert(vlm)")
    print(f"adapter     {folder / 'adapter'}: rank {export.rank}, checked against the patch")
    print(f"checkpoint  {folder / 'checkpoint'}: {mmedit.load(folder / 'checkpoint').caption(args.edit)[0]!r}")


if __name__ == "__main__":
    main()

"""Compare editing methods under one protocol, each figure with its interval, and write the cases for other frameworks.

    python examples/benchmark.py -o results
    python examples/benchmark.py --model llava-hf/llava-1.5-7b-hf --editors MMNeurons FT --cases eval.json --format vlkeb \
        --images VLKEB_images -n 100 -o results

By default MMNeurons, its control of random neurons, and FiNE, on the first swaps of IconWorld's benchmark.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mmedit
from mmedit.data.benchmarks import FORMATS, load_cases
from mmedit.editors import EDITORS
from mmedit.evaluation.answers import Baselines
from mmedit.evaluation.bench import outcomes, report_of
from mmedit.evaluation.export import export_mmedit
from mmedit.evaluation.page import write_report
from mmedit.evaluation.report import summary, write_csv
from mmedit.files import make_folder
from mmedit.hparams import hparams_for
from mmedit.testbed.benchmark import iconworld_cases

SHOWN = ("reliability", "generality_image", "locality_image", "locality_text", "leakage", "rewrite_acc", "multimodal_locality_acc")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="iconworld-llava", help="shipped name, local folder or Hub id")
    parser.add_argument("--device", help="cpu, cuda, …; or auto to spread the model")
    parser.add_argument("--editors", nargs="+", choices=EDITORS, default=["MMNeurons", "FiNE"], help="what to compare")
    parser.add_argument("--cases", type=Path, help="a benchmark's file of records; IconWorld's cases when left out")
    parser.add_argument("--format", choices=FORMATS, default="mmedit", help="of that file")
    parser.add_argument("--images", type=Path, help="the folder of its pictures")
    parser.add_argument("-n", type=int, default=2, help="how many edits")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder, made if it is not there")
    args = parser.parse_args()

    cases = iconworld_cases(args.n)
    if args.cases:
        cases = load_cases(args.cases, args.format, images=args.images).cases[: args.n]
    vlm, folder = mmedit.load(args.model, device=args.device), make_folder(args.output)
    editors = {name: EDITORS[name].from_hparams(hparams_for(args.model, name), vlm) for name in args.editors}
    if "MMNeurons" in editors:
        editors["MMNeurons, random neurons"] = editors["MMNeurons"].with_hparams(scorer="random")
    baselines, reports = Baselines(vlm), []  # the unedited model is asked once for all
    for name, editor in editors.items():
        began = time.perf_counter()
        found = list(outcomes(vlm, cases, editor.execute, baselines=baselines, batch_size=32))
        reports.append(report_of(name, args.model, found, time.perf_counter() - began))
        print(*(f"{name}, {one.case}: {one.failure}\n" for one in found if one.failure), sep="", end="")
    print(summary(reports, SHOWN))
    write_csv(folder / "probes.csv", reports)
    write_report(folder / "report.html", reports, "Editing methods compared")
    written = export_mmedit(cases, folder / "mmedit", lambda probe: baselines.answers([probe])[0].text.strip())
    print(f"the same edits in MMEdit's format: {written}")


if __name__ == "__main__":
    main()

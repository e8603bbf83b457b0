"""Which neurons write the nouns of a caption, what else they write, where they look, and whether they cause what is said.

    python examples/researcher.py -o study
    python examples/researcher.py --model llava-hf/llava-1.5-7b-hf --image cat.jpg --pictures photos/ -n 100 -o study

Looks at one picture closely, then repeats two of the paper's analyses on many: which layers the neurons are in (Fig. 2), and
noise on them against noise on others (Table 5). Needs pip install 'mmedit-vlm[analysis]'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mmedit
from mmedit.analysis.focus import heatmap, image_activations, overlay
from mmedit.analysis.layers import unique_neurons_per_layer
from mmedit.analysis.picture_sets import picture_set
from mmedit.analysis.study import Study
from mmedit.editors.noise import N_NEURONS, SIGMA, noise
from mmedit.errors import ModelError
from mmedit.models.images import load_image
from mmedit.testbed.world import render, scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="iconworld-llava", help="shipped name, local folder or Hub id")
    parser.add_argument("--device", help="cpu, cuda, …; or auto to spread the model")
    parser.add_argument("--image", help="the picture to look at closely; one of IconWorld's when left out")
    parser.add_argument("--pictures", nargs="+", default=["iconworld"], help="files, folders or lists to study")
    parser.add_argument("-n", type=int, default=8, help="how many of them")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder, made if it is not there")
    args = parser.parse_args()

    vlm = mmedit.load(args.model, device=args.device)
    study = Study(vlm, picture_set(args.pictures, args.n), args.output, methods=("contribution", "random"), k=100)
    image = load_image(args.image or render(scene("benchmark", 0, include="cat", arrangement="beside"))[0])
    print(f"{vlm.caption(image)[0]!r}")
    for ranking in mmedit.locate_nouns(vlm, image, k=10)[0]:
        ranking.save(study.path(f"{ranking.source}.json"))
        print(f"\n{ranking.source}:")
        for neuron, score, tokens in ranking[:5]:
            print(f"  {neuron!s:<10} contributes {score:6.2f}, writes {' '.join(tokens[:6])}")
        try:
            seen = heatmap(image_activations(vlm, image, ranking.neurons), image.width, image.height)
            overlay(image, seen).save(study.path(f"{ranking.source}-focus.png"))
        except ModelError as error:
            print(f"  where they look cannot be drawn: {error}")
        with noise(vlm, ranking.neurons[:N_NEURONS], SIGMA, seed=0).applied(vlm):
            print(f"  with noise on the best {N_NEURONS}: {vlm.caption(image)[0]!r}")

    _, causes = study.run(["layers", "perturb"])
    counts = unique_neurons_per_layer(study.survey, range(vlm.architecture.n_layers), ks=(10,))[10]
    print(f"\nlayers of the ten best neurons of every noun in {len(study.survey)} pictures:")
    for layer, count in counts.items():
        print(f"  {layer:3} {count:4} {'#' * round(40 * count / max(counts.values()))}")
    for what, which, share, low, high, _ in causes.tables[0].rows if causes.tables else ():
        print(f"noise on the {which} neurons, {what}: {share:.2f} [{low:.2f}, {high:.2f}]")
    print(f"\nTables, figures and a page are in {study.folder}")


if __name__ == "__main__":
    main()

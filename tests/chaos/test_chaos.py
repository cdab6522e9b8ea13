"""The short form of `make chaos`: 30 kills, and a round of most other faults, each with a full
account.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest
from pynetdicom.association import Association

from tests.chaos import rounds
from tests.chaos.invariant import Account
from tests.chaos.points import POINTS, Point, missing, resolve
from tests.chaos.site import Chaos
from tests.chaos.victim import QUICKER
from tests.conftest import missing as not_here
from tools.peers.postgres import binaries

pytestmark = [
    pytest.mark.xdist_group("chaos"),
    # pynetdicom leaves the socket of a failed connection attempt to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
SEED = 20260101
KILLS = 30


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Chaos:
    return Chaos(tmp_path_factory.mktemp("chaos"), SEED)


@pytest.fixture
def chaos(site: Chaos) -> Iterator[Chaos]:
    """The site; after each test the sockets of its dead associations are collected."""
    yield site
    # After their threads have ended, nothing refers to them.
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline and any(
        isinstance(thread, Association) for thread in threading.enumerate()
    ):
        time.sleep(0.05)
    # Collect them while this test's filter ignores the warning about them.
    gc.collect()


def holds(account: Account, images: int) -> None:
    """The account has no violations, and enough images and results to mean something."""
    assert account.violations == []
    assert account.acknowledged >= images
    assert account.delivered >= images
    assert account.states["analysed"] > 0


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_every_point_exists_in_the_code(point: Point) -> None:
    assert missing(point) == []


@pytest.mark.parametrize("target", QUICKER)
def test_every_quickened_constant_exists_in_the_code(target: str) -> None:
    holder, name = resolve(target)
    assert hasattr(holder, name)


def test_kills_lose_nothing_and_double_nothing(chaos: Chaos) -> None:
    before = chaos.tally.kills.done
    holds(rounds.kills(chaos, KILLS), images=10)
    assert chaos.tally.kills.done - before >= KILLS


def test_an_image_truncated_by_a_power_loss_ends_visibly(chaos: Chaos) -> None:
    account = rounds.power_loss(chaos)
    holds(account, images=10)
    # Truncated images fail; truncated results are made again.
    assert account.failed["bytes_missing"] > 0


def test_full_disks_lose_nothing(chaos: Chaos) -> None:
    try:
        account = rounds.full_disks(chaos, seconds=5.0)
    except PermissionError as error:
        not_here(str(error))
    holds(account, images=3)


def test_a_restart_of_postgresql_under_load_loses_nothing(chaos: Chaos) -> None:
    if binaries() is None:
        not_here("PostgreSQL's server is not installed (apt-get install postgresql)")
    holds(rounds.postgresql(chaos, restarts=2, number_of_kills=4), images=5)


def test_clock_steps_lose_nothing(chaos: Chaos) -> None:
    holds(rounds.clock_steps(chaos, steps=2, number_of_kills=2), images=5)


def test_sigterm_lets_a_role_finish_its_work(chaos: Chaos) -> None:
    holds(rounds.drains(chaos, times=3), images=5)

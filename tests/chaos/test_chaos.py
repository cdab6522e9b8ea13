"""The short form of `make chaos`: 30 kills and one of each other fault, then everything is counted."""

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
    # Once their threads have ended nothing holds them.
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline and any(
        isinstance(thread, Association) for thread in threading.enumerate()
    ):
        time.sleep(0.05)
    # While the warning about them is ignored.
    gc.collect()


def holds(account: Account, images: int) -> None:
    """Nothing was lost, doubled or left half-written; and there was something that could have been."""
    assert account.violations == []
    assert account.acknowledged >= images
    assert account.delivered >= images
    assert account.states["analysed"] > 0


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_every_point_is_one_of_the_code(point: Point) -> None:
    assert missing(point) == []


@pytest.mark.parametrize("target", QUICKER)
def test_every_quickened_constant_is_one_of_the_code(target: str) -> None:
    holder, name = resolve(target)
    assert hasattr(holder, name)


def test_kills_lose_nothing_and_double_nothing(chaos: Chaos) -> None:
    before = chaos.tally.kills.done
    holds(rounds.kills(chaos, KILLS), images=10)
    assert chaos.tally.kills.done - before >= KILLS


def test_what_a_power_loss_has_truncated_ends_visibly(chaos: Chaos) -> None:
    account = rounds.power_loss(chaos)
    holds(account, images=10)
    assert account.failed["bytes_missing"] > 0  # of the received; the results are made again


def test_full_disks(chaos: Chaos) -> None:
    try:
        account = rounds.full_disks(chaos, seconds=5.0)
    except PermissionError as error:
        not_here(str(error))
    holds(account, images=3)


def test_postgresql_restarted_under_load(chaos: Chaos) -> None:
    if binaries() is None:
        not_here("PostgreSQL's server is not installed (apt-get install postgresql)")
    holds(rounds.postgresql(chaos, restarts=2, number_of_kills=4), images=5)


def test_the_clock_set_back(chaos: Chaos) -> None:
    holds(rounds.clock_steps(chaos, steps=2, number_of_kills=2), images=5)


def test_sigterm_drains(chaos: Chaos) -> None:
    holds(rounds.drains(chaos, times=3), images=5)

"""The number of compute threads: from the machine's topology, the process's affinity and the limits
of its control group.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from inference.engines import cores


def machine(root: Path, siblings: list[str], limits: dict[str, str]) -> tuple[Path, Path]:
    """Write a simulated /sys and /proc/self/cgroup: each CPU's siblings, and the cpu.max of some
    groups.
    """
    for number, text in enumerate(siblings):
        folder = root / f"sys/devices/system/cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    for group, limit in limits.items():
        folder = root / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(limit + "\n")
    (root / "cgroup").write_text("0::/system.slice/pleura-analyse@cpu.service\n")
    return root / "sys", root / "cgroup"


UNIT = "system.slice/pleura-analyse@cpu.service"


@pytest.mark.parametrize(
    ("siblings", "limits", "allowed", "wanted"),
    [
        (["0", "1", "2", "3"], {}, {0, 1, 2, 3}, 4),
        # Two hardware threads share each core.
        (["0-1", "0-1", "2-3", "2-3"], {}, {0, 1, 2, 3}, 2),
        (["0", "1", "2", "3"], {}, {2, 3}, 2),
        (["0", "1", "2", "3"], {UNIT: "150000 100000"}, {0, 1, 2, 3}, 2),
        (
            ["0", "1", "2", "3"],
            {UNIT: "max 100000", "system.slice": "100000 100000"},
            {0, 1, 2, 3},
            1,
        ),
        (["0", "1", "2", "3"], {UNIT: "10000 100000"}, {0, 1, 2, 3}, 1),
        (["0", "1", "2", "3"], {UNIT: "nonsense"}, {0, 1, 2, 3}, 4),
        # The topology cannot be read.
        ([], {}, {0, 1, 2}, 3),
    ],
)
def test_threads_equal_the_cores_that_the_process_may_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    siblings: list[str],
    limits: dict[str, str],
    allowed: set[int],
    wanted: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    monkeypatch.setattr(os, "sysconf", lambda _: 64)
    assert cores.available(*machine(tmp_path, siblings, limits)) == wanted


def test_a_configured_number_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(cores, "available", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cores.use(torch.device("cpu"))
    assert asked == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores.use(torch.device("cuda:0"))
    assert asked == []
    cores.use(torch.device("cpu"))
    assert asked == [3]

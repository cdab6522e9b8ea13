"""A process that runs networks keeps freed memory for reuse instead of returning it to the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, threading
from daemon import torch_process

torch_process.prepare()

def work():
    layers = [b"x" * (size << 20) for size in (8, 7, 8, 7, 8, 7)]

def main():
    for _ in range(3):
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=main)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_is_reused_with_few_page_faults() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    # Ten times 45 MB are 115,000 pages.
    assert int(ran.stdout) < 1_000

"""Making the results of one image durable together, beside one after another, in alternate turns.

    python -m benchmarks.flush [--rounds N] [--folder DIR]

Prints medians in milliseconds and their ratio. The folder must be on the disk to measure; the
default is the folder of temporary files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measurement import (
    add_folder_option,
    by_turns,
    command_line,
    median_ms,
    seconds_of,
)
from daemon.spool import Spool

# Bytes of SEG, SC, SR and PR of an image of 2500 x 2048 (docs/benchmarks.md, "Encoding").
_SIZES = (640_000, 840_000, 30_000, 20_000)


def main() -> None:
    """Compare for two result objects, and for four."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    add_folder_option(parser)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        spool = Spool(Path(folder))
        for objects in (2, 4):
            files = [os.urandom(size) for size in _SIZES[:objects]]
            _compare(spool, files, options.rounds)


def _compare(spool: Spool, files: Sequence[bytes], rounds: int) -> None:
    def write_apart() -> None:
        for data in files:
            spool.write(data)

    def write_together() -> None:
        spool.write_all([data] for data in files)

    measures = {
        "apart": lambda: seconds_of(write_apart),
        "together": lambda: seconds_of(write_together),
    }
    seconds = by_turns(measures, rounds, warm_ups=0)
    apart_ms = median_ms(seconds["apart"])
    together_ms = median_ms(seconds["together"])

    print(
        f"{len(files)} objects: one by one {apart_ms:.2f} ms, together {together_ms:.2f} ms, "
        f"one by one / together {apart_ms / together_ms:.2f}"
    )


if __name__ == "__main__":
    main()

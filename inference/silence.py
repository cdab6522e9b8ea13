"""The one place where the inference side silences a library's warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced_warnings() -> Iterator[None]:
    """Silence every warning within the block.

    pydicom's warnings quote header values, which may be a patient's, and must never reach a log. An
    exporter's warnings about a graph are less useful than the golden replay, which compares the
    outputs. The filter belongs to the whole process (see `warnings.catch_warnings`): a program with
    several threads silences warnings once at its start, as the analyse role does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""Keep pydicom from validating values against their VR: its warnings quote patients' values."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import config


@contextmanager
def lenient_headers() -> Iterator[None]:
    """Within this context pydicom neither checks values nor warns about them."""
    _Leniency.enter()
    try:
        yield
    finally:
        _Leniency.leave()


class _Leniency:
    """Counts the threads inside the context, because pydicom's setting holds for the whole process.

    The first thread in changes the setting; the last one out restores it.
    """

    lock = threading.Lock()
    threads = 0
    # Validation modes for reading and writing, as they were before.
    saved = (0, 0)

    @classmethod
    def enter(cls) -> None:
        settings = config.settings
        with cls.lock:
            if cls.threads == 0:
                cls.saved = settings.reading_validation_mode, settings.writing_validation_mode
                settings.reading_validation_mode = config.IGNORE
                settings.writing_validation_mode = config.IGNORE
            cls.threads += 1

    @classmethod
    def leave(cls) -> None:
        settings = config.settings
        with cls.lock:
            cls.threads -= 1
            if cls.threads == 0:
                settings.reading_validation_mode, settings.writing_validation_mode = cls.saved

"""pydicom without warnings about values that break their VR's rules: its warnings quote them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import config


@contextmanager
def lenient_headers() -> Iterator[None]:
    """While it lasts, pydicom does not warn."""
    _Leniency.enter()
    try:
        yield
    finally:
        _Leniency.leave()


class _Leniency:
    """pydicom's setting is one for the process; the first thread to need it changes it, the last
    restores it.
    """

    lock = threading.Lock()
    users = 0
    before = (0, 0)

    @classmethod
    def enter(cls) -> None:
        settings = config.settings
        with cls.lock:
            if cls.users == 0:
                cls.before = settings.reading_validation_mode, settings.writing_validation_mode
                settings.reading_validation_mode = settings.writing_validation_mode = config.IGNORE
            cls.users += 1

    @classmethod
    def leave(cls) -> None:
        with cls.lock:
            cls.users -= 1
            if cls.users == 0:
                config.settings.reading_validation_mode, config.settings.writing_validation_mode = (
                    cls.before
                )

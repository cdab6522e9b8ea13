"""Libraries that only an extra installs: if one is absent, the error says which extra to install.

A node needs none of them (docs/decisions.md, "A node installs what a node needs").
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# Import names of what `pip install 'pleura[train]'` brings beside the node's dependencies.
TRAINING_LIBRARIES = frozenset({"matplotlib", "monai", "sklearn", "tensorboardX"})


class MissingExtraError(ValueError):
    """A library is absent. The message says what needs it, and the command that installs it."""


@contextmanager
def needs_training_libraries(what: str) -> Iterator[None]:
    """Run imports of `what`, which may need a library of the `train` extra.

    Raises:
        MissingExtraError: such a library is absent. The absence of any other module raises as
            usual.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        absent = (error.name or "").partition(".")[0]
        if absent not in TRAINING_LIBRARIES:
            raise

        raise MissingExtraError(
            f"{what}: needs {absent}, which is not installed; "
            "install Pleura's extra train (docs/install.md)"
        ) from error

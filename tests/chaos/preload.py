"""What the process that all victims are forked from has loaded: everything, and no thread running."""

import tests.chaos.archive
import tests.chaos.victim  # noqa: F401

"""What the process that all victims are forked from has loaded: everything, and no thread running."""

import daemon.cli
import daemon.scp
import daemon.scu
import daemon.service
import daemon.worker
import inference.results
import tests.chaos.archive
import tests.chaos.victim  # noqa: F401

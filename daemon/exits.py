"""How a command ends: its exit statuses, and the error that a restart cannot cure."""

from __future__ import annotations

EXIT_DONE = 0

# The work failed. A supervisor restarts the role: the fault may pass.
EXIT_FAILED = 1

# The call, the settings or the installation are wrong: starting again changes nothing.
EXIT_CANNOT_START = 2

# The reader of standard output is gone, as after `| head`: 128 + SIGPIPE.
EXIT_NOT_READ = 141

# Ctrl-C, as shells count it: 128 + SIGINT.
EXIT_INTERRUPTED = 130


class CannotStartError(Exception):
    """A command cannot work with these settings, now or later. The message says what to do."""

"""The person that runs a command."""

from __future__ import annotations

import getpass
import os


def user() -> str:
    """The user of this command, for the audit trail: the person behind sudo, if there is one."""
    if person := os.environ.get("SUDO_USER"):
        return person
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())

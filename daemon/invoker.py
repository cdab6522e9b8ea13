"""The person that runs a command."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from pathlib import Path

# The user that logged in (pam_loginuid(8)). It stays through su and sudo, and a process cannot
# change it.
_LOGIN = Path("/proc/self/loginuid")
# No login, as in a service; or, in a container, a user of the host without a number there.
_NOBODY = {4294967295, 65534}


def user() -> str:
    """The user of this command, for the audit trail: the person behind su and sudo, if known.

    The environment decides nothing but who called sudo, where the kernel knows no login: anybody
    can set LOGNAME.
    """
    logged_in = _logged_in()
    if logged_in is not None:
        return _name(logged_in)
    return os.environ.get("SUDO_USER") or _name(os.getuid())


def _logged_in() -> int | None:
    """The number of the user that logged in; None: the kernel does not know."""
    with suppress(OSError, ValueError):
        number = int(_LOGIN.read_text(encoding="ascii"))
        return None if number in _NOBODY else number
    return None


def _name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)

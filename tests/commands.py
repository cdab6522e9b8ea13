"""Runs `pleura ...` in this process, without the time that another Python takes to start."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
from pathlib import Path

from daemon import cli, garbage


def pleura(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Exit status and output of `pleura` with these arguments.

    An exception that the command does not catch fails the test. The umask, the log handlers and the
    garbage collector's thresholds, which `main` sets for the life of a process, are restored.
    """
    words = [*map(str, arguments)]
    out = io.StringIO()
    err = io.StringIO()
    handlers = logging.getLogger().handlers[:]
    umask = os.umask(0o077)

    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(words)
    except SystemExit as ended:
        # argparse raises it if the arguments are wrong.
        status = int(ended.code or 0)
    finally:
        os.umask(umask)
        garbage.as_usual()
        logging.getLogger().handlers[:] = handlers

    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())

"""`pleura ...` in this process: the command itself, without the start of another Python."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
from pathlib import Path

from daemon import cli


def pleura(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What a process of the same words would have returned and printed.

    An exception that no command catches fails the test. The umask and the log's handlers are put
    back: `main` sets them for the life of a process.
    """
    words = [*map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    handlers = logging.getLogger().handlers[:]
    umask = os.umask(0o077)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(words)
    except SystemExit as ended:
        # argparse ends a wrong call so.
        status = int(ended.code or 0)
    finally:
        os.umask(umask)
        logging.getLogger().handlers[:] = handlers
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())

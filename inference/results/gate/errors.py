"""The gate's one error."""

from __future__ import annotations


class GateError(Exception):
    """The object must not leave. `what` says what is wrong with it, in tags and UIDs."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind} does not pass the gate: {what}; it was not sent")
        self.kind = kind
        self.what = what

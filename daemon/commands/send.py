"""`pleura send`: send files to an AE by C-STORE, or send it a C-ECHO, and print its answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.deliver.verdict import Verdict, verdict
from daemon.dicom.link import (
    Link,
    LinkDownError,
    NotAcceptedError,
    Remote,
    TitleKeys,
    proposal,
)
from daemon.dicom.outgoing import Outgoing, UnsendableError, describe

_MAXIMUM_CONTEXTS = 128  # PS3.8 9.3.2.2: odd numbers from 1 to 255
_OF_OPTIONS = TitleKeys(calling="--calling", called="--called")


@dataclass(frozen=True)
class Sent:
    """The outcome for one file, or for the C-ECHO (`file` None)."""

    file: Path | None
    # None: no answer.
    status: int | None
    why: str = ""
    # From the file; empty if it holds no object.
    sop_instance_uid: str = ""

    @property
    def ok(self) -> bool:
        """Whether the peer has the object."""
        return self.status is not None and verdict(self.status, 0) is Verdict.STORED

    def __str__(self) -> str:
        subject = "C-ECHO" if self.file is None else str(self.file)
        if self.status is None:
            return f"{subject}: {self.why}"
        return f"{subject}: 0x{self.status:04X}" + (f" ({self.why})" if self.why else "")


def send(
    files: Sequence[Path],
    address: tuple[str, int],
    called_ae_title: str,
    calling_ae_title: str = "PLEURA",
) -> Iterator[Sent]:
    """C-STORE each file as it is (without files: C-ECHO) to the AE at (host, port), and yield its
    answers.
    """
    remote = Remote(called_ae_title, *address, title_keys=_OF_OPTIONS)
    if not files:
        yield _echo(remote, calling_ae_title)

    described: list[Outgoing] = []
    for file in files:
        try:
            described.append(describe(file))
        except UnsendableError as error:
            yield Sent(file, None, str(error))
        except OSError as error:
            yield Sent(file, None, error.strerror or str(error))

    for group in _groups(described):
        yield from _send_group(group, remote, calling_ae_title)


def _echo(remote: Remote, calling_ae_title: str) -> Sent:
    try:
        with Link.open(calling_ae_title, remote, proposal([])) as link:
            answer = link.echo()
            return Sent(None, answer.status, answer.comment)
    except (LinkDownError, NotAcceptedError) as error:
        return Sent(None, None, str(error))


def _send_group(group: Sequence[Outgoing], remote: Remote, calling_ae_title: str) -> Iterator[Sent]:
    waiting = deque(group)

    try:
        with Link.open(
            calling_ae_title, remote, proposal([outgoing.syntaxes for outgoing in group])
        ) as link:
            while waiting:
                try:
                    answer = link.store(waiting[0])
                except (NotAcceptedError, UnsendableError) as error:
                    yield _unanswered(waiting.popleft(), str(error))
                else:
                    outgoing = waiting.popleft()
                    uid = outgoing.sop_instance_uid
                    yield Sent(outgoing.path, answer.status, answer.comment, uid)
    except LinkDownError as error:
        yield from (_unanswered(outgoing, str(error)) for outgoing in waiting)


def _unanswered(outgoing: Outgoing, why: str) -> Sent:
    return Sent(outgoing.path, None, why, outgoing.sop_instance_uid)


def _groups(objects: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Objects that fit into one association each; every pair of class and syntax needs up to three
    contexts.
    """
    group: list[Outgoing] = []
    needed: set[tuple[str, str]] = set()

    for outgoing in objects:
        pair = (outgoing.sop_class_uid, outgoing.transfer_syntax_uid)
        needed.add(pair)
        if 3 * len(needed) > _MAXIMUM_CONTEXTS:
            yield group
            group = []
            needed = {pair}
        group.append(outgoing)

    if group:
        yield group

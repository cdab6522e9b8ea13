"""Access control: which application entities may associate with this node, and for what."""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from daemon.addresses import canonical
from daemon.config import DicomDestination, Peer
from daemon.dicom import negotiation
from daemon.dicom.acceptor import Rejection
from daemon.tls import PeerCertificate, describe_wanted, is_wanted

log = logging.getLogger("pleura.receive")

# How long the addresses of a host name are used before it is resolved again.
_ADDRESSES_S = 60.0
# The same for a name that has never been resolved, such as at a start before the name service's.
_UNRESOLVED_S = 5.0


@dataclass(frozen=True)
class Caller:
    """An application entity that is admitted.

    An archive that is only a destination may not store: it may verify, and report storage
    commitment. `destinations`: the names of the destinations with `commitment` that this AE is.
    """

    ae_title: str
    stores: bool = True
    priority: Literal["stat", "routine"] = "routine"
    destinations: tuple[str, ...] = ()
    # The entry of `peers` that admits it, and whose quota it uses; empty: admitted without an
    # entry.
    entry: str = ""
    # How many associations it may have open. None: as many as there are slots.
    quota: int | None = None


class AccessList:
    """The `peers` and committing `destinations` of the settings; without peers, every AE of this
    machine.
    """

    def __init__(
        self,
        ae_title: str,
        peers: Sequence[Peer],
        committing: Sequence[DicomDestination] = (),
        slots: int = 64,
    ) -> None:
        """`slots`: how many associations there may be in all."""
        self._ae_title = ae_title
        self._peers = peers
        self._committing = committing

        # With more than one system, none may take more than half of the slots by default.
        is_shared = len(peers) + len(committing) > 1
        self._fair_quota = max(1, slots // 2) if is_shared else slots
        self._resolved: dict[str, tuple[float, frozenset[str]]] = {}

    def admit(
        self,
        called: str | None,
        calling: str | None,
        address: str,
        certificate: PeerCertificate | None = None,
    ) -> Caller | Rejection:
        """The caller, or why it is rejected.

        AE titles without padding; None for bytes that are no AE title. `certificate`: the verified
        certificate of a peer that presented one.
        """
        if called != self._ae_title:
            return Rejection(
                negotiation.CALLED_AE_TITLE_NOT_RECOGNIZED,
                f"this node is {self._ae_title}; set the sender's called AE title to that",
            )

        if calling is None:
            return Rejection(
                negotiation.CALLING_AE_TITLE_NOT_RECOGNIZED,
                "the calling AE title is blank or has other bytes than printable ASCII; "
                "set an AE title of 1 to 16 characters on the sender",
            )

        return self._admit(calling, canonical(address), certificate)

    def _admit(
        self, calling: str, address: str, certificate: PeerCertificate | None
    ) -> Caller | Rejection:
        archives = [each for each in self._committing if each.ae_title == calling]
        here = tuple(each.name for each in archives if address in self._addresses(each.host))
        if not self._peers and ipaddress.ip_address(address).is_loopback:
            return Caller(calling, destinations=here)

        named = [peer for peer in self._peers if peer.ae_title == calling]
        placed = [
            peer for peer in named if peer.host is None or address in self._addresses(peer.host)
        ]
        for peer in placed:
            if peer.certificate is None or is_wanted(peer.certificate, certificate):
                # An archive may come from another address than it listens on, such as a load
                # balancer's: its entry in `peers` says so.
                names = tuple(each.name for each in archives)
                return Caller(
                    calling,
                    priority=peer.priority,
                    destinations=names,
                    entry=peer.host or "any address",
                    quota=peer.associations or self._fair_quota,
                )

        if placed:
            return _not_its_certificate(placed, certificate)
        if here:
            return Caller(
                calling,
                stores=False,
                destinations=here,
                entry=address,
                quota=self._fair_quota,
            )
        if calling == self._ae_title and not named and ipaddress.ip_address(address).is_loopback:
            # `pleura doctor` calls like this. It only verifies, and needs no entry.
            return Caller(calling, stores=False, entry="this node", quota=self._fair_quota)
        return self._rejection(calling, address, [peer.host for peer in named])

    def _rejection(self, calling: str, address: str, hosts: list[str | None]) -> Rejection:
        entry = f"add to peers: {{ae_title: {calling}, host: {address}}}"
        unresolved = [host for host in hosts if host is not None and not self._addresses(host)]

        if unresolved:
            return Rejection(
                negotiation.NO_REASON_GIVEN_FOR_NOW,
                f"the peers have this AE title at {', '.join(unresolved)}, which the name service "
                "does not resolve now; mend the name service, or name the address in peers[].host",
            )

        if hosts:
            allowed = ", ".join(str(host) for host in hosts)
            return Rejection(
                negotiation.NO_REASON_GIVEN,
                f"the peers have this AE title at {allowed} only; if it moved, {entry}",
            )

        if not self._peers:
            return Rejection(
                negotiation.NO_REASON_GIVEN,
                f"no peers are named, so only this machine may associate; {entry}",
            )

        return Rejection(
            negotiation.CALLING_AE_TITLE_NOT_RECOGNIZED,
            f"no peer has this AE title; {entry}",
        )

    def _addresses(self, host: str) -> frozenset[str]:
        expires, known = self._resolved.get(host, (0.0, frozenset()))
        if time.monotonic() < expires:
            return known
        try:
            known = frozenset(canonical(str(info[4][0])) for info in socket.getaddrinfo(host, None))
        except OSError:
            # The name service does not answer: its last answer still holds.
            log.warning("host %s of the settings cannot be resolved", host)
        lasts_s = _ADDRESSES_S if known else _UNRESOLVED_S
        self._resolved[host] = (time.monotonic() + lasts_s, known)
        return known


def _not_its_certificate(placed: Sequence[Peer], found: PeerCertificate | None) -> Rejection:
    """AE title and address match a peer, but the certificate does not."""
    wanted = " or ".join(
        describe_wanted(peer.certificate) for peer in placed if peer.certificate is not None
    )
    if found is None:
        found_and_cure = (
            "no certificate was found; let the sender use the TLS port and present its certificate"
        )
    else:
        found_and_cure = (
            f"'{found}' (SHA-256 {found.fingerprint}) was found; if the certificate was renewed, "
            "correct peers[].certificate"
        )
    return Rejection(
        # DICOM has no reason for a certificate.
        negotiation.NO_REASON_GIVEN,
        f"the peers tie this AE title to the certificate with {wanted}, and {found_and_cure}",
    )

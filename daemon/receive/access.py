"""Who may associate with us, and for what."""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from daemon.config import DicomDestination, Peer

log = logging.getLogger("pleura.receive")

_ADDRESSES_S = 60.0  # how long a peer's host name stays resolved

# A-ASSOCIATE-RJ: result, source, reason (PS3.8 Table 9-21). For an address DICOM has no reason of its own.
Rejection = tuple[int, int, int]
_ADDRESS_NOT_ALLOWED: Rejection = (1, 1, 1)
_CALLING_AE_UNKNOWN: Rejection = (1, 1, 3)
_CALLED_AE_UNKNOWN: Rejection = (1, 1, 7)


@dataclass(frozen=True)
class Caller:
    """Who has associated. A mere destination does not store: it verifies, and reports storage commitment."""

    ae_title: str
    stores: bool = True
    priority: Literal["stat", "routine"] = "routine"
    destinations: tuple[
        str, ...
    ] = ()  # the names of the destinations that it is, of those asked for commitment


class Gate:
    """Who may associate: `peers` and `destinations` of the configuration; without peers, whoever is on this machine."""

    def __init__(
        self, ae_title: str, peers: Sequence[Peer], committing: Sequence[DicomDestination] = ()
    ) -> None:
        self._ae_title = ae_title
        self._peers = peers
        self._committing = committing
        self._resolved: dict[str, tuple[float, frozenset[str]]] = {}

    def admit(self, called: str, calling: str, address: str) -> Caller | Rejection:
        """Who this is, or why it is rejected. AE titles without surrounding blanks."""
        if called != self._ae_title:
            return _CALLED_AE_UNKNOWN
        here = _normal(address)
        namesakes = [one for one in self._committing if one.ae_title == calling]
        destinations = tuple(one.name for one in namesakes if here in self._addresses(one.host))
        if not self._peers and ipaddress.ip_address(here).is_loopback:
            return Caller(calling, destinations=destinations)
        named = [peer for peer in self._peers if peer.ae_title == calling]
        for peer in named:
            if peer.host is None or here in self._addresses(peer.host):
                # An archive may come from another address than it listens on (a load balancer's): `peers` says so.
                return Caller(
                    calling,
                    priority=peer.priority,
                    destinations=tuple(one.name for one in namesakes),
                )
        if destinations:
            return Caller(calling, stores=False, destinations=destinations)
        return _ADDRESS_NOT_ALLOWED if named or not self._peers else _CALLING_AE_UNKNOWN

    def _addresses(self, host: str) -> frozenset[str]:
        until, known = self._resolved.get(host, (0.0, frozenset()))
        if time.monotonic() < until:
            return known
        try:
            known = frozenset(_normal(str(found[4][0])) for found in socket.getaddrinfo(host, None))
        except OSError:  # the name service is away: what it said last still holds
            log.warning("host %s of the settings cannot be resolved", host)
        self._resolved[host] = (time.monotonic() + _ADDRESSES_S, known)
        return known


def _normal(address: str) -> str:
    """One spelling for each address: an IPv4 peer on a dual-stack socket looks like ::ffff:10.0.4.11."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)

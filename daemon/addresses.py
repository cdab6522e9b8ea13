"""One spelling for each address: in access rules, quotas, logs, the audit trail, and logins."""

from __future__ import annotations

import ipaddress


def canonical(address: str) -> str:
    """An IP address without its zone. On a port of both families, an IPv4 peer's address is
    ::ffff:10.0.4.11; that is 10.0.4.11 here.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)

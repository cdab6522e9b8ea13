"""OpenSSL's errors in an operator's words: what happened, and what to do."""

from __future__ import annotations

import ssl

# X509_V_ERR_* of x509_vfy.h.
_NOT_YET_VALID = 9
_EXPIRED = 10
_WRONG_PURPOSE = 26
_HOSTNAME_MISMATCH = 62
_IP_ADDRESS_MISMATCH = 64
_UNTRUSTED = (2, 18, 19, 20, 21)

# Of a peer's certificate, in a handshake or in a session that the peer resumes.
EXPIRED = "its certificate has expired; renew it there"

_ALERTS = ("UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_UNKNOWN", "CERTIFICATE_EXPIRED")
_OTHER_VERSION = (
    "NO_SHARED_CIPHER",
    "NO_SHARED_SIGNATURE_ALGORITHMS",
    "NO_PROTOCOLS_AVAILABLE",
    "UNSUPPORTED_PROTOCOL",
    "VERSION_TOO_LOW",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "ALERT_INSUFFICIENT_SECURITY",
    "ALERT_HANDSHAKE_FAILURE",
)
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "RECORD_LAYER_FAILURE")


def in_words(error: OSError, ours: str, trusted: str) -> str:
    """A handshake that failed, or that the peer broke off, in words.

    `ours`: the key of the settings that holds our certificate; `trusted`: the key that names the
    certificates that a peer is verified against.
    """
    if isinstance(error, TimeoutError):
        return (
            "it did not complete the TLS handshake in time; does it speak TLS at this port, and "
            "does a firewall let it answer?"
        )
    if isinstance(error, ConnectionError):
        return _broken_off(ours)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, trusted)

    reason = str(getattr(error, "reason", "") or "").upper()
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it gave no certificate; give it a certificate and key that it presents"
    if "CERTIFICATE_REQUIRED" in reason:
        return f"it asks for a certificate of this node; name certificate and key in {ours}"
    if any(alert in reason for alert in _ALERTS):
        return (
            f"it refuses this node's certificate ({_plain(reason)}); let it trust the issuer of "
            f"{ours}.certificate, and call this node by a name in it"
        )
    if any(word in reason for word in _OTHER_VERSION):
        return (
            f"no common TLS version or cipher suite ({_plain(reason)}); it must speak TLS 1.2 or "
            f"1.3 as {ours}.profile and minimum_version have it"
        )
    if reason in _NO_TLS:
        return "it answers without TLS; switch TLS on there, or give the port that speaks TLS"
    if not reason or "EOF" in reason:
        return _broken_off(ours)
    return f"TLS failed ({_plain(reason)}); look for the fault in the log of the other side"


def _broken_off(ours: str) -> str:
    return (
        "it closed the connection during the handshake; does it speak TLS at this port, and "
        f"trust the issuer of {ours}.certificate?"
    )


def _unverified(error: ssl.SSLCertVerificationError, trusted: str) -> str:
    code, said = error.verify_code, error.verify_message

    if code == _EXPIRED:
        return EXPIRED
    if code == _NOT_YET_VALID:
        return "its certificate is not valid yet; compare the clocks"

    if code in (_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH):
        return (
            f"its certificate is for another name ({said}); give the host by a name in the "
            "certificate, or for an archive that name as destinations[].tls.name"
        )
    if code in _UNTRUSTED:
        return (
            f"its certificate is not trusted ({said}); if it is right, add it or its issuer to "
            f"{trusted}"
        )

    if code == _WRONG_PURPOSE:
        return (
            f"its certificate is not for this use ({said}); issue one with the extended key usages "
            "serverAuth and clientAuth, or with none"
        )

    return f"its certificate is refused ({said}); issue another one"


def _plain(reason: str) -> str:
    """TLSV1_ALERT_UNKNOWN_CA -> alert unknown ca."""
    for prefix in ("TLSV1_", "TLSV13_", "SSLV3_", "SSL_"):
        reason = reason.removeprefix(prefix)
    return reason.replace("_", " ").lower()

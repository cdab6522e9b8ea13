"""A digest to look up an Accession Number by.

The ledger never holds the number: it names a patient's order, ledger rows outlive the images, and
backups of the ledger travel further than the spool does. A digest answers "what became of this
accession number" without showing the number to a reader of a dump. Numbers are short, so the digest
does not withstand a brute-force search by a person who has the ledger. Its key, the identity of the
spool, only ensures that one table of digests does not fit all nodes.
"""

from __future__ import annotations

import hashlib


def accession_digest(accession_number: str, spool_identity: str) -> str:
    """32 hexadecimal digits; "" for an empty number.

    Surrounding blanks are not significant (PS3.5 Table 6.2-1, SH).
    """
    number = accession_number.strip()
    if not number:
        return ""
    key = spool_identity.encode()[:64]
    return hashlib.blake2b(
        number.encode(errors="backslashreplace"), key=key, digest_size=16
    ).hexdigest()

"""A digest to look up an Accession Number by.

The ledger never holds the number: it names a patient's order, ledger rows outlive the images, and
backups of the ledger travel further than the spool does. A digest answers "what became of this
accession number", and shows the number to nobody who reads a dump. Numbers are short, so the digest
does not withstand a search by a person that holds the ledger: the key, the identity of the spool,
only keeps one table of digests from fitting all nodes.
"""

from __future__ import annotations

import hashlib


def accession_digest(accession_number: str, spool_identity: str) -> str:
    """32 hexadecimal digits; "" for an empty number.

    Surrounding blanks do not count (PS3.5 Table 6.2-1, SH).
    """
    number = accession_number.strip()
    if not number:
        return ""
    key = spool_identity.encode()[:64]
    return hashlib.blake2b(
        number.encode(errors="backslashreplace"), key=key, digest_size=16
    ).hexdigest()

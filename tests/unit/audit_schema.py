"""The PS3.15 A.5.1.1 schema for audit messages, transcribed from RELAX NG compact syntax into
tables, and a validator for it.

The tests install no RELAX NG processor. The tables give each element its attributes (a check, and
whether the attribute is required) and its children in order (how often each may occur).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from xml.etree import ElementTree

Check = Callable[[str], bool]
MANY = 1_000_000


def one_of(*values: str) -> Check:
    return lambda value: value in values


def numbers(last: int) -> Check:
    return one_of(*map(str, range(1, last + 1)))


def token(value: str) -> bool:
    """xsd:token: no tab or line break, no space at either end, no two spaces in a row."""
    return value == " ".join(value.split())


def text(_: str) -> bool:
    return True


def boolean(value: str) -> bool:
    return value in ("true", "false", "0", "1")


def integer(value: str) -> bool:
    return re.fullmatch(r"[-+]?[0-9]+", value) is not None


def date_time(value: str) -> bool:
    zone = r"(Z|[-+]\d{2}:\d{2})?"
    return re.fullmatch(rf"-?\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?{zone}", value) is not None


def binary(value: str) -> bool:
    return base64.b64encode(base64.b64decode(value, validate=True)).decode() == value


@dataclass(frozen=True)
class Element:
    """`attributes`: name -> (check, required). `children`: in order, (names, minimum, maximum).

    `coded`: optional attributes of a code, which must be present together or absent together.
    """

    attributes: dict[str, tuple[Check, bool]] = field(default_factory=dict)
    children: tuple[tuple[tuple[str, ...], int, int], ...] = ()
    content: Check | None = None
    coded: tuple[str, ...] = ()


def child(*names: str, least: int = 0, most: int = MANY) -> tuple[tuple[str, ...], int, int]:
    return names, least, most


CODED = Element(
    {
        "csd-code": (token, True),
        "codeSystemName": (token, True),
        "displayName": (token, False),
        "originalText": (token, True),
    }
)
UID = Element({"UID": (token, True)})

SCHEMA = {
    "AuditMessage": Element(
        children=(
            child("EventIdentification", least=1, most=1),
            child("ActiveParticipant", least=1),
            child("AuditSourceIdentification", least=1, most=1),
            child("ParticipantObjectIdentification"),
        )
    ),
    "EventIdentification": Element(
        {
            "EventActionCode": (one_of(*"CRUDE"), False),
            "EventDateTime": (date_time, True),
            "EventOutcomeIndicator": (one_of("0", "4", "8", "12"), True),
        },
        (
            child("EventID", least=1, most=1),
            child("EventTypeCode"),
            child("EventOutcomeDescription", most=1),
        ),
    ),
    "EventID": CODED,
    "EventTypeCode": CODED,
    "EventOutcomeDescription": Element(content=text),
    "AuditSourceIdentification": Element(
        {"AuditEnterpriseSiteID": (token, False), "AuditSourceID": (token, True)},
        (child("AuditSourceTypeCode"),),
    ),
    "AuditSourceTypeCode": Element(
        {
            "csd-code": (token, True),
            "codeSystemName": (token, False),
            "displayName": (token, False),
            "originalText": (token, False),
        },
        coded=("codeSystemName", "originalText"),
    ),
    "ActiveParticipant": Element(
        {
            "UserID": (text, True),
            "AlternativeUserID": (text, False),
            "UserName": (text, False),
            "UserIsRequestor": (boolean, True),
            "NetworkAccessPointID": (token, False),
            "NetworkAccessPointTypeCode": (numbers(5), False),
        },
        (child("RoleIDCode"), child("MediaIdentifier", most=1)),
    ),
    "RoleIDCode": CODED,
    "MediaIdentifier": Element(children=(child("MediaType", least=1, most=1),)),
    "MediaType": CODED,
    "ParticipantObjectIdentification": Element(
        {
            "ParticipantObjectID": (token, True),
            "ParticipantObjectTypeCode": (numbers(4), False),
            "ParticipantObjectTypeCodeRole": (numbers(26), False),
            "ParticipantObjectDataLifeCycle": (numbers(15), False),
            "ParticipantObjectSensitivity": (token, False),
        },
        (
            child("ParticipantObjectIDTypeCode", least=1, most=1),
            child("ParticipantObjectName", "ParticipantObjectQuery", least=1, most=1),
            child("ParticipantObjectDetail"),
            child("ParticipantObjectDescription"),
        ),
    ),
    "ParticipantObjectIDTypeCode": CODED,
    "ParticipantObjectName": Element(content=token),
    "ParticipantObjectQuery": Element(content=binary),
    "ParticipantObjectDetail": Element({"type": (token, True), "value": (binary, True)}),
    "ParticipantObjectDescription": Element(
        children=(
            child("MPPS"),
            child("Accession"),
            child("SOPClass"),
            child("ParticipantObjectContainsStudy", most=1),
            child("Encrypted", most=1),
            child("Anonymized", most=1),
        )
    ),
    "MPPS": UID,
    "Accession": Element({"Number": (token, True)}),
    "SOPClass": Element(
        {"UID": (token, False), "NumberOfInstances": (integer, True)}, (child("Instance"),)
    ),
    "Instance": UID,
    "ParticipantObjectContainsStudy": Element(children=(child("StudyIDs"),)),
    "StudyIDs": UID,
    "Encrypted": Element(content=boolean),
    "Anonymized": Element(content=boolean),
}


def faults(xml: str) -> list[str]:
    """Everything in a document that the schema does not allow."""
    root = ElementTree.fromstring(xml)
    start = [] if root.tag == "AuditMessage" else [f"{root.tag}: not the root"]
    return start + _faults(root)


def _faults(element: ElementTree.Element) -> list[str]:
    rule = SCHEMA[element.tag]
    found = [
        f"{element.tag}@{name}: absent"
        for name, (_, is_required) in rule.attributes.items()
        if is_required and name not in element.attrib
    ]
    for name, value in element.attrib.items():
        if name not in rule.attributes:
            found.append(f"{element.tag}@{name}: unknown")
        elif not rule.attributes[name][0](value):
            found.append(f"{element.tag}@{name}: {value!r}")

    given = set(rule.coded) & set(element.attrib)
    if "displayName" in element.attrib or given:
        missing = sorted(set(rule.coded) - given)
        found += [f"{element.tag}@{name}: absent" for name in missing]

    content = element.text or ""
    if rule.content is None and content.strip():
        found.append(f"{element.tag}: has text")
    elif rule.content is not None and not rule.content(content):
        found.append(f"{element.tag}: {content!r}")

    rest = [inner.tag for inner in element]
    for names, least, most in rule.children:
        count = 0
        while rest and rest[0] in names:
            rest.pop(0)
            count += 1
        if not least <= count <= most:
            found.append(f"{element.tag}: {count} of {names}")
    if rest:
        found.append(f"{element.tag}: {rest[0]} out of place")
    return found + [fault for inner in element for fault in _faults(inner)]

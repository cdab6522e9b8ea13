"""A recorded event as the XML of PS3.15 A.5.1, with the participants that A.5.3 asks for.

The ledger keeps an event as its name and a few facts (daemon.ledger.records.AuditEvent); the XML
is made when it is sent, so that a repetition is the same message byte for byte.
"""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from daemon.ledger import AuditRow

# Facts of an event, as the ledger recorded them.
Facts = Mapping[str, str]

# The most characters of an attribute, and of an alert's text. A whole message then fits into a
# datagram (RFC 5426: 65,507 bytes), also with each character escaped or of four bytes. A longer
# message could never be sent, and all later ones would wait for it.
_MOST_OF_VALUE = 1000
_MOST_OF_WORDS = 4000
_CUT = " ..."

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DCM = "DCM"
_SUCCESS, _MINOR_FAILURE, _SERIOUS_FAILURE = "0", "4", "8"

# PS3.16 CID 400 and 401: the event, and its type.
_APPLICATION_ACTIVITY = ("110100", "Application Activity")
_ACCESSED = ("110103", "DICOM Instances Accessed")
_TRANSFERRED = ("110104", "DICOM Instances Transferred")
_EXPORT = ("110106", "Export")
_QUERY = ("110112", "Query")
_SECURITY_ALERT = ("110113", "Security Alert")
_USER_AUTHENTICATION = ("110114", "User Authentication")
_START = ("110120", "Application Start")
_STOP = ("110121", "Application Stop")
_LOGIN = ("110122", "Login")
_LOGOUT = ("110123", "Logout")
_NODE_AUTHENTICATION = ("110126", "Node Authentication")
_SECURITY_CONFIGURATION = ("110129", "Security Configuration")
_SOFTWARE_CONFIGURATION = ("110131", "Software Configuration")
_RESTRICTED_FUNCTION = ("110132", "Use of Restricted Function")
_RECORDING_STOPPED = ("110133", "Audit Recording Stopped")
_RECORDING_STARTED = ("110134", "Audit Recording Started")

# PS3.16 CID 402: the roles of participants.
_APPLICATION = ("110150", "Application")
_DESTINATION = ("110152", "Destination Role ID")
_SOURCE = ("110153", "Source Role ID")
_DESTINATION_MEDIA = ("110154", "Destination Media")

# PS3.16 CID 404: the identifiers of objects.
_STUDY_UID = ("110180", "Study Instance UID")
_NODE_ID = ("110182", "Node ID")

# Settings that decide which systems may talk to the node.
_SECURITY_SETTINGS = {"ae_title", "audit", "destinations", "host", "peers", "port", "tls", "web"}


@dataclass(frozen=True)
class Source:
    """The reporting system: its AE title and host, and the site's name for itself."""

    ae_title: str
    host: str
    enterprise_site_id: str | None = None

    @property
    def name(self) -> str:
        return f"{self.ae_title}@{self.host}"


def document(row: AuditRow, source: Source) -> str:
    """The XML of one event.

    An event that another version recorded, and this version does not know, is an alert that quotes
    it: every later message waits for it.
    """
    root = ElementTree.Element("AuditMessage")
    try:
        _BODIES[row.event](root, row, source)
    except KeyError:
        root = ElementTree.Element("AuditMessage")
        _unknown(root, row, source)
    return '<?xml version="1.0" encoding="UTF-8"?>' + ElementTree.tostring(root, encoding="unicode")


# -- the events ------------------------------------------------------------------------------------


def _application(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.1. One for each role, which is a process."""
    kind = _START if row.event == "start" else _STOP
    _event(root, row, _APPLICATION_ACTIVITY, "E", kind)
    facts = row.facts
    _participant(root, f"{facts['role']}/{facts['pid']}", source, _APPLICATION, is_requestor=False)
    _source(root, source)


def _received(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.7, recorded by the receiver."""
    facts = row.facts
    _event(root, row, _TRANSFERRED, "C")
    _peer(root, facts["ae_title"], facts.get("address", ""), _SOURCE, is_requestor=True)
    _participant(root, source.ae_title, source, _DESTINATION, is_requestor=False)
    _instance(root, source, facts)


def _sent(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.7, recorded by the sender."""
    facts = row.facts
    _event(root, row, _TRANSFERRED, "C")
    _participant(root, source.ae_title, source, _SOURCE, is_requestor=True)
    _peer(root, facts["ae_title"], facts.get("address", ""), _DESTINATION, is_requestor=False)
    _instance(root, source, facts)


def _exported(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.5: a file in a folder leaves the control of the node."""
    facts = row.facts
    _event(root, row, _EXPORT, "R")
    _participant(root, source.ae_title, source, _SOURCE, is_requestor=True)
    _peer(root, facts["folder"], "", _DESTINATION_MEDIA, is_requestor=False)
    _instance(root, source, facts)


def _refused(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.11: a connection or association was refused."""
    facts = row.facts
    _event(root, row, _SECURITY_ALERT, "E", _NODE_AUTHENTICATION, _MINOR_FAILURE)
    _participant(root, source.ae_title, source, _APPLICATION, is_requestor=True)
    _source(root, source)
    _alert(root, facts["address"], facts["why"])


def _settings(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.11: the node found other settings than at its last start, or took new ones."""
    keys = row.facts["keys"].split(", ")
    is_security = not _SECURITY_SETTINGS.isdisjoint(keys)
    kind = _SECURITY_CONFIGURATION if is_security else _SOFTWARE_CONFIGURATION
    _event(root, row, _SECURITY_ALERT, "E", kind)
    _participant(root, source.ae_title, source, _APPLICATION, is_requestor=True)
    _source(root, source)
    words = f"settings changed: {row.facts['keys']}"
    if "changes" in row.facts:
        words += f"; by {row.facts['by']}: {row.facts['changes']}"
    _alert(root, source.name, words)


def _settings_refused(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.11: settings that a person asked for are not in force."""
    facts = row.facts
    _event(root, row, _SECURITY_ALERT, "E", _SOFTWARE_CONFIGURATION, _MINOR_FAILURE)
    _participant(root, source.ae_title, source, _APPLICATION, is_requestor=True)
    _source(root, source)
    changes = facts["changes"] or "unread"
    words = f"settings refused: {facts['why']}; by {facts['by']}: {changes}"
    _alert(root, source.name, words)


def _command(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.11: a person had work done again (`pleura retry`, `pleura resend`)."""
    facts = row.facts
    _event(root, row, _SECURITY_ALERT, "E", _RESTRICTED_FUNCTION)
    _participant(root, facts["by"], source, None, is_requestor=True)
    _participant(root, source.ae_title, source, _APPLICATION, is_requestor=False)
    _source(root, source)
    _alert(root, source.name, facts["what"])


def _recording(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.11: too many events waited, so recording stops; or it resumes."""
    if row.event == "recording_stopped":
        kind, outcome = _RECORDING_STOPPED, _SERIOUS_FAILURE
        words = f"{row.facts['waiting']} events wait; later events are not recorded"
    else:
        kind, outcome = _RECORDING_STARTED, _SUCCESS
        words = f"events are recorded again; {row.facts['lost']} were not"

    _event(root, row, _SECURITY_ALERT, "E", kind, outcome)
    _participant(root, source.ae_title, source, _APPLICATION, is_requestor=True)
    _source(root, source)
    _alert(root, source.name, words)


def _authentication(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.12: a person logged in to the page or out of it, or failed to."""
    kind = _LOGOUT if row.event == "logout" else _LOGIN
    outcome = _MINOR_FAILURE if row.event == "login_failed" else _SUCCESS
    _event(root, row, _USER_AUTHENTICATION, "E", kind, outcome)
    _person(root, row.facts["by"], row.facts["address"])
    _participant(root, source.ae_title, source, None, is_requestor=False)
    _source(root, source)


def _query(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.10: a person looked for images.

    The text says what was searched by, without the terms.
    """
    _event(root, row, _QUERY, "E")
    _person(root, row.facts["by"], "", _SOURCE)
    _participant(root, source.ae_title, source, _DESTINATION, is_requestor=False)
    _source(root, source)
    _alert(root, source.name, f"query by {row.facts['what']}")


def _accessed(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.6: a person saw the picture of an instance, or took its file."""
    _event(root, row, _ACCESSED, "R")
    _person(root, row.facts["by"], "")
    _participant(root, source.ae_title, source, _APPLICATION, is_requestor=False)
    _instance(root, source, row.facts)


def _unknown(root: ElementTree.Element, row: AuditRow, source: Source) -> None:
    """PS3.15 A.5.3.11: an event of another version, after an upgrade or a rollback."""
    _event(root, row, _SECURITY_ALERT, "E", _SOFTWARE_CONFIGURATION)
    _participant(root, source.ae_title, source, _APPLICATION, is_requestor=True)
    _source(root, source)
    facts = ", ".join(f"{key}: {value}" for key, value in row.facts.items())
    _alert(root, source.name, f"event '{row.event}' of another version; {facts}")


_BODIES = {
    "start": _application,
    "stop": _application,
    "received": _received,
    "sent": _sent,
    "exported": _exported,
    "refused": _refused,
    "settings": _settings,
    "settings_refused": _settings_refused,
    "command": _command,
    "recording_stopped": _recording,
    "recording_started": _recording,
    "login": _authentication,
    "login_failed": _authentication,
    "logout": _authentication,
    "query": _query,
    "accessed": _accessed,
}


# -- parts of a message ----------------------------------------------------------------------------


def _event(
    root: ElementTree.Element,
    row: AuditRow,
    event: tuple[str, str],
    action: str,
    kind: tuple[str, str] | None = None,
    outcome: str = _SUCCESS,
) -> None:
    when = datetime.datetime.fromtimestamp(row.made_at, datetime.UTC)
    element = ElementTree.SubElement(
        root,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=when.isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=outcome,
    )

    _code(element, "EventID", event)
    if kind is not None:
        _code(element, "EventTypeCode", kind)


def _participant(
    root: ElementTree.Element,
    user_id: str,
    source: Source,
    role: tuple[str, str] | None,
    is_requestor: bool,
) -> None:
    """A participant on this node."""
    element = ElementTree.SubElement(
        root,
        "ActiveParticipant",
        UserID=_clean(user_id),
        AlternativeUserID=f"AETITLES={source.ae_title}",
        UserIsRequestor=str(is_requestor).lower(),
        NetworkAccessPointID=source.host,
        NetworkAccessPointTypeCode="1",
    )

    if role is not None:
        _code(element, "RoleIDCode", role)


def _person(
    root: ElementTree.Element, user_id: str, address: str, role: tuple[str, str] | None = None
) -> None:
    """The person at a browser."""
    _peer(root, user_id or "unknown", address, role, is_requestor=True)


def _peer(
    root: ElementTree.Element,
    user_id: str,
    address: str,
    role: tuple[str, str] | None,
    is_requestor: bool,
) -> None:
    """A participant elsewhere."""
    attributes = {"UserID": _clean(user_id), "UserIsRequestor": str(is_requestor).lower()}
    if address:
        is_number = re.fullmatch(r"[0-9.]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*", address) is not None
        attributes["NetworkAccessPointID"] = _clean(address)
        attributes["NetworkAccessPointTypeCode"] = "2" if is_number else "1"

    element = ElementTree.SubElement(root, "ActiveParticipant", attributes)
    if role is not None:
        _code(element, "RoleIDCode", role)


def _source(root: ElementTree.Element, source: Source) -> None:
    attributes = {"AuditSourceID": source.name}
    if source.enterprise_site_id:
        attributes["AuditEnterpriseSiteID"] = _clean(source.enterprise_site_id)
    element = ElementTree.SubElement(root, "AuditSourceIdentification", attributes)
    # An application server.
    ElementTree.SubElement(element, "AuditSourceTypeCode", {"csd-code": "4"})


def _instance(root: ElementTree.Element, source: Source, facts: Facts) -> None:
    """Add the last parts of a message about one instance: its source, study and patient."""
    _source(root, source)
    _study(root, facts)
    _patient(root, facts)


def _study(root: ElementTree.Element, facts: Facts) -> None:
    """The study, and the one instance of it. An undecodable image has no study that is known."""
    element = _object(root, facts.get("study_instance_uid") or "unknown", "2", "3")
    _code(element, "ParticipantObjectIDTypeCode", _STUDY_UID)
    ElementTree.SubElement(element, "ParticipantObjectName").text = "Study"
    description = ElementTree.SubElement(element, "ParticipantObjectDescription")
    sop_class = ElementTree.SubElement(
        description, "SOPClass", UID=_clean(facts["sop_class_uid"]), NumberOfInstances="1"
    )
    ElementTree.SubElement(sop_class, "Instance", UID=_clean(facts["sop_instance_uid"]))


def _patient(root: ElementTree.Element, facts: Facts) -> None:
    """The patient, where the settings have their identifier in the audit trail. Never a name."""
    patient_id = facts.get("patient_id")
    if not patient_id:
        return
    element = _object(root, patient_id, "1", "1")
    _code(element, "ParticipantObjectIDTypeCode", ("2", "Patient Number"), "RFC-3881")
    ElementTree.SubElement(element, "ParticipantObjectName").text = "Patient"


def _alert(root: ElementTree.Element, node: str, words: str) -> None:
    element = _object(root, node, "2", "13")
    _code(element, "ParticipantObjectIDTypeCode", _NODE_ID)
    ElementTree.SubElement(element, "ParticipantObjectName").text = _clean(node)
    value = base64.b64encode(_cut(words, _MOST_OF_WORDS).encode("utf-8", "replace")).decode()
    ElementTree.SubElement(
        element, "ParticipantObjectDetail", type="Alert Description", value=value
    )


def _object(root: ElementTree.Element, name: str, kind: str, role: str) -> ElementTree.Element:
    return ElementTree.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_clean(name),
        ParticipantObjectTypeCode=kind,
        ParticipantObjectTypeCodeRole=role,
    )


def _code(
    parent: ElementTree.Element, name: str, code: tuple[str, str], system: str = _DCM
) -> None:
    value, meaning = code
    ElementTree.SubElement(
        parent,
        name,
        {
            "csd-code": value,
            "codeSystemName": system,
            "displayName": meaning,
            "originalText": meaning,
        },
    )


def _clean(text: str) -> str:
    """A value that XML 1.0 can hold, with its white space collapsed."""
    return _cut(" ".join(_NOT_XML.sub("?", text).split()), _MOST_OF_VALUE)


def _cut(text: str, most: int) -> str:
    """The text, or as much as the message has room for."""
    return text if len(text) <= most else text[: most - len(_CUT)] + _CUT

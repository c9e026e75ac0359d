"""Audit events as DICOM audit messages: the XML of PS3.15 A.5, by which hospitals' audit repositories sort them."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Literal
from xml.etree import ElementTree  # writes only; nothing from outside is parsed

from wsisam_service.audit.events import AuditEvent, Outcome

Code = tuple[str, str, str]
"""(code, coding scheme, meaning)."""

_ACTIVITY: Code = ("110100", "DCM", "Application Activity")
_START: Code = ("110120", "DCM", "Application Start")
_STOP: Code = ("110121", "DCM", "Application Stop")
_ACCESSED: Code = ("110103", "DCM", "DICOM Instances Accessed")
_TRANSFERRED: Code = ("110104", "DCM", "DICOM Instances Transferred")
_QUERY: Code = ("110112", "DCM", "Query")
_ALERT: Code = ("110113", "DCM", "Security Alert")
_AUTHENTICATION: Code = ("110114", "DCM", "User Authentication")
_LOGIN: Code = ("110122", "DCM", "Login")
_SOFTWARE: Code = ("110131", "DCM", "Software Configuration")
_RESTRICTED: Code = ("110132", "DCM", "Use of Restricted Function")
_RECORDING_STOPPED: Code = ("110133", "DCM", "Audit Recording Stopped")
_APPLICATION: Code = ("110150", "DCM", "Application")
_SLIDE_ID: Code = ("slide-id", "wsisam", "Opaque id of a slide")
_PICTURE_ID: Code = ("picture", "wsisam", "A picture sent along, kept by nobody")

_REGISTRATION = re.compile("POST /sam/?weights/?")
_PICTURE_SENT = re.compile("POST /(v1/segment|sam.*)")
"""Routes of requests that carry a picture; registrations of weights aside."""

_OUTCOMES: Mapping[Outcome, str] = {"success": "0", "left": "4", "refused": "4", "failed": "8"}
_DECLARATION = b'<?xml version="1.0" encoding="UTF-8"?>'
"""On the same line as what follows: syslog servers escape line ends."""
_SERVER_PROCESS = "4"
"""Type of audit source: an application server process."""
_SYSTEM_OBJECT, _REPORT = "2", "3"
_MACHINE_NAME, _IP_ADDRESS = "1", "2"
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

ActionCode = Literal["C", "R", "D", "E"]


def dicom_message(event: AuditEvent, *, host: str, site: str) -> bytes:
    """The AuditMessage document of `event`, UTF-8. `host` is this machine, `site` the hospital's name for the place."""
    kind, subtype, action = _kind(event)
    root = ElementTree.Element("AuditMessage")
    about = _add(
        root,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=event.time.isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=_OUTCOMES[event.outcome],
    )
    _add_code(about, "EventID", kind)
    if subtype is not None:
        _add_code(about, "EventTypeCode", subtype)
    _add(about, "EventOutcomeDescription").text = _outcome_text(event)
    if event.action == "request":
        _add(root, "ActiveParticipant", UserID=event.who, UserIsRequestor="true", **_access_point(event.address))
    service = _add(
        root,
        "ActiveParticipant",
        UserID="wsisam",
        AlternativeUserID=str(os.getpid()),
        UserIsRequestor="false",
        NetworkAccessPointID=host,
        NetworkAccessPointTypeCode=_MACHINE_NAME,
    )
    _add_code(service, "RoleIDCode", _APPLICATION)
    place = {"AuditEnterpriseSiteID": site} if site else {}
    source = _add(root, "AuditSourceIdentification", AuditSourceID=f"wsisam@{host}", **place)
    _add(source, "AuditSourceTypeCode", **{"csd-code": _SERVER_PROCESS})
    if kind in (_ACCESSED, _TRANSFERRED) and (event.slide or _PICTURE_SENT.fullmatch(event.route)):
        _add_object(root, event)
    document: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=False)
    return _DECLARATION + document


def _kind(event: AuditEvent) -> tuple[Code, Code | None, ActionCode]:
    """What the standard calls this event: id, type and action."""
    own = {"start": (_ACTIVITY, _START), "stop": (_ACTIVITY, _STOP), "lost": (_ALERT, _RECORDING_STOPPED)}
    known = own.get(event.action) or _security(event)
    if known is not None:
        return *known, "E"
    asked: Code = (event.route, "wsisam", "Method and route of the request")
    if event.route == "GET /v1/slides":
        return _QUERY, asked, "E"
    if event.transfer and event.outcome != "refused":  # what failed, or was not waited for, may have been sent
        return _TRANSFERRED, asked, "C"
    return _ACCESSED, asked, "D" if event.route.startswith("DELETE ") else "R"


def _security(event: AuditEvent) -> tuple[Code, Code] | None:
    """Id and type of a request that was refused for want of rights, or that changes what the service runs."""
    if event.credentials_refused:
        return _AUTHENTICATION, _LOGIN
    if event.status == HTTPStatus.FORBIDDEN:
        return _ALERT, _RESTRICTED
    return (_ALERT, _SOFTWARE) if _REGISTRATION.fullmatch(event.route) else None


def _outcome_text(event: AuditEvent) -> str:
    if event.action == "lost":
        return f"{event.lost} events were lost, for the buffer was full"
    return f"status {event.status}" if event.action == "request" else event.action


def _add_object(root: ElementTree.Element, event: AuditEvent) -> None:
    found = _add(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=event.slide or "picture",
        ParticipantObjectTypeCode=_SYSTEM_OBJECT,
        ParticipantObjectTypeCodeRole=_REPORT,
    )
    _add_code(found, "ParticipantObjectIDTypeCode", _SLIDE_ID if event.slide else _PICTURE_ID)
    _add(
        found,
        "ParticipantObjectDetail",
        type="request-id",
        value=base64.b64encode(event.request_id.encode()).decode("ascii"),
    )


def _access_point(address: str) -> dict[str, str]:
    if not address:
        return {}
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return {"NetworkAccessPointID": address, "NetworkAccessPointTypeCode": _MACHINE_NAME}
    return {"NetworkAccessPointID": address, "NetworkAccessPointTypeCode": _IP_ADDRESS}


def _add(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    """A child whose attributes hold only characters that XML has: a token's subject may be anything."""
    cleaned = {name: _NOT_XML.sub("\ufffd", value) for name, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, cleaned)


def _add_code(parent: ElementTree.Element, tag: str, code: Code) -> None:
    _add(parent, tag, **{"csd-code": code[0], "codeSystemName": code[1], "originalText": code[2]})

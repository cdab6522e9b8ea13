"""The audit trail (IHE ATNA; PS3.15 A.5): the events, their XML, and the way to the repository."""

from daemon.audit.alerts import Alerts
from daemon.audit.message import Source, document
from daemon.audit.sender import AuditSender

__all__ = ["Alerts", "AuditSender", "Source", "document"]

"""Which sinks the settings name."""

from __future__ import annotations

from wsisam_service.audit.json_lines import JsonLines
from wsisam_service.audit.syslog import Syslog
from wsisam_service.audit.trail import AuditTrail, Sink
from wsisam_service.settings import Settings, SettingsError


def open_trail(settings: Settings) -> AuditTrail:
    """Raises `SettingsError` for an address or files that cannot be used."""
    sinks: list[Sink] = []
    if settings.audit_file is not None:
        sinks.append(JsonLines(settings.audit_file))
    if settings.audit_syslog:
        host, _, port = settings.audit_syslog.rpartition(":")
        try:
            syslog = Syslog(
                host.strip("[]"),
                int(port),
                ca=settings.audit_syslog_ca,
                certificate=settings.audit_syslog_certificate,
                key=settings.audit_syslog_key,
                site=settings.audit_site,
            )
        except OSError as error:
            raise SettingsError(f"setting audit_syslog: its certificate files cannot be used: {error}") from error
        sinks.append(syslog)
    return AuditTrail(sinks, max_waiting=settings.audit_waiting)

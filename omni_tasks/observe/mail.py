"""
Alerts by e-mail.
"""

from __future__ import annotations

import hashlib
import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from urllib.parse import parse_qs, unquote, urlsplit

from omni_tasks.errors import ConfigurationError
from omni_tasks.observe.notification import Notification

__all__ = ["EmailSink"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailSink:
    """
    A mail server that takes messages by SMTP.

    Attributes:
        tls:
            ``"smtps"``: from the first byte on.  ``"smtp"``: by STARTTLS, which only a server on this
            machine may lack.

        within: Seconds one answer of the server may take.
    """

    host: str
    port: int
    tls: str
    sender: str
    recipients: tuple[str, ...]
    user: str = ""
    password: str = field(default="", repr=False)
    within: float = 5.0
    kind: str = "email"
    refreshed: bool = False

    @property
    def name(self) -> str:
        """
        Its kind, and a fingerprint of where it goes.
        """
        place = f"{self.host}:{self.port}:{','.join(self.recipients)}"
        return f"{self.kind}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"

    @classmethod
    def from_url(cls, url: str, *, within: float) -> EmailSink:
        """
        Read ``smtp://user:password@host:port/?from=a@b&to=c@d&to=e@f``, or ``smtps://``.

        Raises:
            ConfigurationError: A part is missing.
        """
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        sender, recipients = query.get("from", []), query.get("to", [])
        if not parts.hostname or len(sender) != 1 or not recipients:
            shown = f"{parts.scheme}://{parts.hostname or ''}/..."
            raise ConfigurationError(
                "omni_alert_sinks entry", shown, "smtp://host:port/?from=one@address&to=another@one"
            )
        return cls(
            host=parts.hostname,
            port=parts.port or (465 if parts.scheme == "smtps" else 587),
            tls=parts.scheme,
            sender=sender[0],
            recipients=tuple(recipients),
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            within=within,
        )

    def send(self, notifications: Sequence[Notification]) -> None:
        """
        Send one message each, over one connection.

        Raises:
            OSError: The server did not take one; smtplib's exceptions are such.
        """
        with self._connect() as server:
            for note in notifications:
                server.send_message(self.message(note))

    def message(self, note: Notification) -> EmailMessage:
        """
        What is sent.  A message that is sent again has the same Message-ID.
        """
        message = EmailMessage()
        message["Subject"] = f"[{note.status}] {note.summary}"
        message["From"] = self.sender
        message["To"] = ", ".join(self.recipients)
        message["Message-ID"] = f"<{note.id}@omni-tasks>"
        details = "\n".join(f"{name}: {value}" for name, value in sorted(note.details.items()))
        message.set_content(
            f"{note.summary}\n\nalert: {note.alert}\nseverity: {note.severity}\nstatus: {note.status}\n"
            f"component: {note.component or '-'}\nsince: {note.since.isoformat()}\n{details}\n"
        )
        return message

    def _connect(self) -> smtplib.SMTP:
        context = ssl.create_default_context()
        if self.tls == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(self.host, self.port, timeout=self.within, context=context)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=self.within)
        try:
            server.ehlo()
            if self.tls == "smtp" and (server.has_extn("starttls") or self.host not in _LOOPBACK):
                server.starttls(context=context)
            if self.user:
                server.login(self.user, self.password)
        except BaseException:
            server.close()
            raise
        return server

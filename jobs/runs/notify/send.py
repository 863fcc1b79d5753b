"""Sending of a message to one receiver. Errors name the receiver, never its address or key."""

import hashlib
import hmac
import logging
import secrets
import smtplib
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from email.message import EmailMessage
from typing import Any, NamedTuple

from ropewalk.cluster.errors import BackendError, ConfigError, RopewalkError
from ropewalk.jobs.runs.notify.config import AnyTarget, AppriseTarget, CommandTarget, Mail, MailTarget, WebhookTarget
from ropewalk.jobs.runs.notify.outbox import Message, message

SECONDS = 30.0  # for a receiver to answer
EVENT_HEADER, TIME_HEADER, SIGNATURE_HEADER = "X-Ropewalk-Event", "X-Ropewalk-Timestamp", "X-Ropewalk-Signature"


def send(target: AnyTarget, notice: Message) -> None:
    """Send a message, and return once it is accepted. Raises BackendError or ConfigError."""
    try:
        match target:
            case CommandTarget():
                _run(target, notice)
            case WebhookTarget():
                _post(target, notice)
            case MailTarget():
                _mail(target.mail, notice)
            case AppriseTarget():
                _apprise(target, notice)
    except (OSError, smtplib.SMTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) and not hasattr(error, "code") else error
        raise BackendError(f"{target.name}: {_describe(reason)}") from None


class Trial(NamedTuple):
    """Result of a test message."""

    target: str
    accepted: bool
    error: str


def try_targets(targets: Sequence[AnyTarget]) -> list[Trial]:
    """Send a test message to each receiver."""
    text = "`ropewalk notify test` sent this. Nothing has happened to a run."
    trials = []
    for target in targets:
        try:
            send(target, message("-", "test", secrets.token_hex(8), "ropewalk: test", text))
        except RopewalkError as error:
            trials.append(Trial(target.name, accepted=False, error=str(error)))
        else:
            trials.append(Trial(target.name, accepted=True, error=""))
    return trials


def _describe(error: Any) -> str:
    """Describe an error without its text, which may contain an address, a key or an answer."""
    code = getattr(error, "code", None) or getattr(error, "smtp_code", None) or getattr(error, "errno", None)
    return f"{type(error).__name__} {code}" if code else type(error).__name__


def signature(key: str, timestamp: str, body: bytes) -> str:
    """Return the signature of a webhook's body: HMAC-SHA256 of `TIMESTAMP.BODY`."""
    return "sha256=" + hmac.new(key.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        """Refuse: the message is for this address alone."""


def _post(target: WebhookTarget, message: Message) -> None:
    body, timestamp = message.model_dump_json().encode(), str(int(time.time()))
    headers = {"Content-Type": "application/json", EVENT_HEADER: message.id, TIME_HEADER: timestamp}
    headers[SIGNATURE_HEADER] = signature(target.key.get_secret_value(), timestamp, body)
    request = urllib.request.Request(target.webhook.get_secret_value(), body, headers)
    try:
        urllib.request.build_opener(_NoRedirects).open(request, timeout=SECONDS).close()
    except urllib.error.HTTPError as error:  # holds the connection
        error.close()
        raise


def _run(target: CommandTarget, message: Message) -> None:
    try:
        ended = subprocess.run(
            target.command, input=message.model_dump_json().encode(), timeout=SECONDS, capture_output=True, check=False
        )
    except subprocess.TimeoutExpired:
        raise BackendError(f"{target.name}: no end within {SECONDS:.0f} s") from None
    if ended.returncode:
        raise BackendError(f"{target.name}: exit code {ended.returncode}")


def _mail(mail: Mail, message: Message) -> None:
    letter = EmailMessage()
    letter["Subject"], letter["From"], letter["To"] = " ".join(message.title.split()), mail.sender, ", ".join(mail.to)
    letter["Message-ID"] = f"<{message.id}@ropewalk>"
    letter.set_content(message.text)
    secure = ssl.create_default_context()
    if mail.security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(mail.host, mail.port, timeout=SECONDS, context=secure)
    else:
        server = smtplib.SMTP(mail.host, mail.port, timeout=SECONDS)
    with server:
        if mail.security == "starttls":
            server.starttls(context=secure)
        if mail.user is not None and mail.password is not None:
            server.login(mail.user, mail.password.get_secret_value())
        server.send_message(letter)


def _apprise(target: AppriseTarget, message: Message) -> None:
    try:
        import apprise
    except ImportError:
        raise ConfigError(f"{target.name}: needs the extra `apprise`: pip install ropewalk[apprise]") from None
    logging.getLogger("apprise").disabled = True  # it logs addresses, which contain keys
    service = apprise.Apprise()
    if not service.add(target.apprise.get_secret_value()):
        raise ConfigError(f"{target.name}: apprise does not know this kind of address; correct it")
    if not service.notify(title=message.title, body=message.text):
        raise BackendError(f"{target.name}: apprise could not deliver")

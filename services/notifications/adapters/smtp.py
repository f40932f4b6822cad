"""A mail server. It knows no key: what was handed over and not answered is unknown, and is never handed over again by itself.

Each step's failure is told apart: before a mail's content nothing was sent, after it nobody can say. Of answers the numbers
travel on, never the words, in which addresses stand.
"""

import asyncio
import re
import smtplib
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import httpx

from libs.common import crash
from libs.common.errors import LeaseLost
from libs.common.workqueue import MARGIN_SECONDS, Claim, MaybeDone, NotSent, must_not_outlast
from services.notifications.adapters.mail import Unaddressable, compose
from services.notifications.domain import ADDRESS_UNUSABLE, ANSWER_LOST, REFUSED, SENT, Outcome
from services.notifications.ports import Message

_ENHANCED = re.compile(rb"[245]\.\d{1,3}\.\d{1,3}")  # RFC 3463
SENDER_REFUSED = "SENDER_REFUSED"
CONNECTION_LOST = "CONNECTION_LOST"
_BROKEN = (OSError, smtplib.SMTPServerDisconnected, smtplib.SMTPResponseException, ValueError)


class Smtp:
    """A `ports.Channel`."""

    key_seconds = 0.0
    renders = True

    def __init__(
        self,
        host: str,
        port: int,
        security: Literal["none", "starttls", "tls"],
        username: str,
        password: str,
        sender: str,
        sender_name: str,
    ) -> None:
        self._host, self._port, self._security = host, port, security
        self._username, self._password = username, password
        self._sender, self._sender_name = sender, sender_name
        self._context = None if security == "none" else ssl.create_default_context()  # reads all authorities: once

    def reaches(self, message: Message) -> bool:
        return bool(message.email)

    async def send(
        self, _client: httpx.AsyncClient, claim: Claim, messages: Sequence[Message]
    ) -> list[Outcome] | NotSent | MaybeDone:
        mails = [self._compose(message) for message in messages]
        if all(isinstance(mail, Outcome) for mail in mails):
            return [mail for mail in mails if isinstance(mail, Outcome)]
        must_not_outlast(claim, claim.timeout_seconds + MARGIN_SECONDS)
        try:
            server = await asyncio.to_thread(self._connect, claim.timeout_seconds)
        except (*_BROKEN, smtplib.SMTPNotSupportedError) as error:
            return _not_reached(error)
        try:
            outcomes, broken = await self._send_all(server, claim, messages, mails)
        finally:
            await asyncio.to_thread(_leave, server)
        if broken and all(outcome.state == "PENDING" for outcome in outcomes):  # the mailing as a whole comes again
            final = broken == SENDER_REFUSED
            return NotSent(broken, "no mail was taken", final=final, outage=not final)
        return outcomes

    def _compose(self, message: Message) -> bytes | Outcome:
        try:
            return compose(message, self._sender, self._sender_name)
        except Unaddressable as error:
            return Outcome("FAILED", ADDRESS_UNUSABLE, str(error))

    async def _send_all(
        self, server: smtplib.SMTP, claim: Claim, messages: Sequence[Message], mails: Sequence[bytes | Outcome]
    ) -> tuple[list[Outcome], str]:
        """What became of each mail, and why the connection was of no more use ("": it was, to the end)."""
        outcomes: list[Outcome] = []
        broken = ""
        for message, mail in zip(messages, mails, strict=True):
            if isinstance(mail, Outcome):
                outcomes.append(mail)
            elif broken:  # certainly not handed over
                outcomes.append(Outcome("PENDING", broken))
            else:
                if claim.gate:
                    await claim.gate.turn()
                outcome, broken = await asyncio.to_thread(self._hand_over, server, claim, message.email, mail)
                outcomes.append(outcome)
        return outcomes, broken

    def _connect(self, timeout_seconds: float) -> smtplib.SMTP:
        named = self._sender.rpartition("@")[2]  # or the library would ask the name service who we are
        if self._security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                self._host, self._port, named, timeout=timeout_seconds, context=self._context
            )
        else:
            server = smtplib.SMTP(self._host, self._port, named, timeout=timeout_seconds)
        try:
            if self._security == "starttls":
                server.starttls(context=self._context)
            if self._username:
                server.login(self._username, self._password)
            server.ehlo_or_helo_if_needed()
        except BaseException:
            server.close()
            raise
        return server

    def _hand_over(self, server: smtplib.SMTP, claim: Claim, recipient: str, mail: bytes) -> tuple[Outcome, str]:
        """What became of one mail, and why there is no going on with this connection ("": there is)."""
        extended = ["SMTPUTF8"] if not recipient.isascii() else []
        if extended and not server.has_extn("smtputf8"):
            return Outcome("FAILED", ADDRESS_UNUSABLE, "the mail server takes no such letters"), ""
        try:
            code, text = server.mail(self._sender, extended)
            if 500 <= code < 600:
                return Outcome("PENDING", SENDER_REFUSED), SENDER_REFUSED
            if 400 <= code < 500:  # before it was told whom it is for: it takes no mail at all now
                return Outcome("PENDING", f"SMTP_{code}"), f"SMTP_{code}"
            if 200 <= code < 300:
                code, text = server.rcpt(recipient)
            if not 200 <= code < 300:
                server.rset()
                return _refused(code, text), "CLOSING" if code == 421 else ""
            must_not_outlast(claim, claim.timeout_seconds)  # we may have slept, or the server
        except _BROKEN:
            return Outcome("PENDING", CONNECTION_LOST), CONNECTION_LOST
        except LeaseLost:
            return Outcome("PENDING", "LEASE_ENDS"), "LEASE_ENDS"
        return self._give(server, claim, mail)

    @staticmethod
    def _give(server: smtplib.SMTP, claim: Claim, mail: bytes) -> tuple[Outcome, str]:
        """The content. From its first byte on only an answer tells what became of it."""
        # An answer that comes byte by byte would never end by the socket's own time-out.
        watch = threading.Timer(claim.timeout_seconds, _cut, (server,))
        watch.start()
        try:
            crash.reached("call.after_first_byte", 1, claim.kind)
            code, text = server.data(mail)
        except smtplib.SMTPDataError as error:  # it did not want the content
            return _refused(error.smtp_code, error.smtp_error), "CLOSING" if error.smtp_code == 421 else ""
        except _BROKEN as error:
            return Outcome("UNKNOWN", ANSWER_LOST, type(error).__name__), CONNECTION_LOST
        finally:
            watch.cancel()
        if 200 <= code < 300:
            return SENT, ""
        if 400 <= code < 600:
            return _refused(code, text), "CLOSING" if code == 421 else ""
        return Outcome("UNKNOWN", ANSWER_LOST, "the answer makes no sense"), CONNECTION_LOST


def _refused(code: int, text: bytes | str) -> Outcome:
    """A definite no, for now or for good; what makes no sense is for now."""
    enhanced = _ENHANCED.match(text if isinstance(text, bytes) else text.encode())
    said = f"{code} {enhanced[0].decode()}" if enhanced else str(code)
    if 500 <= code < 600:
        return Outcome("FAILED", REFUSED, said)
    return Outcome("PENDING", f"SMTP_{code}" if 400 <= code < 500 else "NONSENSE", said)


def _not_reached(error: Exception) -> NotSent:
    """Nothing was handed over. What the server wants differently somebody has to configure."""
    code = error.smtp_code if isinstance(error, smtplib.SMTPResponseException) else 0
    wanted = smtplib.SMTPAuthenticationError | smtplib.SMTPNotSupportedError | ssl.SSLCertVerificationError
    final = isinstance(error, wanted) and not 400 <= code < 500  # 454: whoever knows the passwords is away
    number = f" {code}" if code else ""
    return NotSent("NOT_REACHED", type(error).__name__ + number, final=final, outage=not final)


def _cut(server: smtplib.SMTP) -> None:
    """Wakes whoever waits for an answer; closing would not."""
    with suppress(OSError, AttributeError):
        server.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]


def _leave(server: smtplib.SMTP) -> None:
    try:
        server.quit()
    except (OSError, smtplib.SMTPException):
        server.close()

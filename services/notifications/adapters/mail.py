"""A notice as a mail, with an id that is always the same."""

from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from services.notifications.ports import Message


class Unaddressable(Exception):
    """No mail can be addressed so."""


def compose(message: Message, sender: str, sender_name: str) -> bytes:
    """Text and HTML. Raises Unaddressable. The same notice gives the same mail, as long as its contents do."""
    assert message.mail is not None
    local, _, domain = sender.rpartition("@")
    mail = EmailMessage(policy=SMTP)
    try:
        mail["From"] = Address(sender_name, local, domain)
        if message.email:
            to_local, _, to_domain = message.email.rpartition("@")
            mail["To"] = Address(message.name, to_local, to_domain)
        mail["Subject"] = message.mail.subject
        mail["Date"] = format_datetime(message.created_at)
        mail["Message-ID"] = f"<{message.notice_id}@{domain}>"
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: holidays are not answered to us
        mail.set_content(message.mail.text)
        mail.add_alternative(message.mail.html, subtype="html")
        mail.set_boundary(f"=_{message.notice_id.hex}")
        return mail.as_bytes()
    except (MessageError, ValueError, LookupError, AttributeError, TypeError) as error:  # so it fails, too, for odd addresses
        raise Unaddressable(type(error).__name__) from None

"""`python -m services.notifications preview KIND CHANNEL [--language xx]`: the sample, as people would see it.
`python -m services.notifications show NOTICE_ID [--html]`: a notice that was made, from the rows it was made from."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import UUID

from libs.common.db import Database
from libs.common.errors import Malformed, Transient
from libs.common.seal import Sealer
from services.notifications import domain, store
from services.notifications.config import Settings
from services.notifications.content import Contents, Opener, sample
from services.notifications.ports import Mail, Message
from services.notifications.rendering import TRIED, TemplateFailed, Templates


def preview(argv: Sequence[str]) -> None:
    """Needs no settings: templates can be made before anything else is there."""
    parser = argparse.ArgumentParser(prog="python -m services.notifications preview", description=preview.__doc__)
    parser.add_argument("kind", choices=[kind.lower() for kind in domain.KINDS], type=str.lower)
    parser.add_argument("channel", choices=["novu", "smtp", "file"])
    parser.add_argument("--language", default=os.environ.get("ALMONER_NOTIFICATIONS_LANGUAGE", "en"))
    parser.add_argument("--benefit-type", choices=TRIED, default=TRIED[0])
    parser.add_argument("--html", action="store_true", help="the HTML instead of the text")
    parser.add_argument("--templates", type=Path, default=os.environ.get("ALMONER_NOTIFICATIONS_TEMPLATE_FOLDER"))
    options = parser.parse_args(argv)
    message = sample(next(kind for kind in domain.KINDS if kind.lower() == options.kind), options.benefit_type)
    if options.channel == "novu":
        print(json.dumps(message.payload, ensure_ascii=False, indent=1))
        return
    try:
        _print(Templates(options.templates).render(message, options.channel, options.language), options.html)
    except TemplateFailed as error:
        sys.exit(f"template {error}")


def show(argv: Sequence[str]) -> None:
    """A stored notice as its receiver sees it (one that went to Novu: as our own template tells it)."""
    parser = argparse.ArgumentParser(prog="python -m services.notifications show", description=show.__doc__)
    parser.add_argument("notice_id", type=UUID)
    parser.add_argument("--html", action="store_true", help="the HTML instead of the text")
    options = parser.parse_args(argv)
    settings = Settings.load()
    database = Database(settings.database_url.get_secret_value(), Settings.SERVICE, pool_size=2)
    try:
        found = stored(settings, database, options.notice_id)
        if found is None:
            sys.exit(f"there is no notice {options.notice_id}")
        message, channel = found
        _print(Templates(settings.template_folder).render(message, channel, settings.language), options.html)
    except TemplateFailed as error:
        sys.exit(f"template {error}")
    except (Malformed, Transient) as error:
        sys.exit(str(error))
    finally:
        database.close()


def stored(settings: Settings, database: Database, notice_id: UUID) -> tuple[Message, str] | None:
    """A notice that was made and the channel it was made for. Raises Malformed where a seal does not open."""
    with database.transaction() as tx:
        mailing = store.mailing_of(tx, notice_id)
    if mailing is None:
        return None
    sealer = Sealer(settings.seal_keys.get_secret_value(), settings.token_key.get_secret_value())
    [message] = Contents(mailing, Opener(sealer), settings.programme_descriptions, settings.benefit_descriptions).messages()
    return message, mailing.channel or "none"


def _print(mail: Mail, html: bool) -> None:
    print(mail.html if html else f"{mail.subject}\n\n{mail.text}", end="")


VERBS: Mapping[str, Callable[[Sequence[str]], None]] = {"preview": preview, "show": show}

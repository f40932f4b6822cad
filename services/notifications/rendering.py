"""Notices as people see them: Jinja2 templates, sandboxed; whatever is missing is a fault, and HTML escapes what comes from outside.

A template is `<language>/<kind>.<channel>.<part>.j2`, or `<language>/<kind>.<part>.j2` for all channels; part is subject, text or
html. An operator's folder comes before ours.
"""

from collections.abc import Iterable
from pathlib import Path

from jinja2 import ChoiceLoader, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from libs.common.contracts.base import CASH, GOODS
from libs.common.errors import Fatal
from services.notifications.content import sample
from services.notifications.domain import KINDS, one_line
from services.notifications.ports import Mail, Message

TEMPLATES = Path(__file__).parent / "templates"
PARTS = ("subject", "text", "html")
TRIED = (*GOODS, *CASH)  # a template may say something else for each


class TemplateFailed(Exception):
    """A template can't be rendered. Names the template and the fault, never what was to be told."""

    code = "TEMPLATE_FAILED"

    def __init__(self, template: str, error: Exception) -> None:
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        # What these two say is of the template; anything else may quote what was rendered.
        said = f": {error}" if isinstance(error, TemplateSyntaxError | UndefinedError) else ""
        self.message = f"{template}{line}: {type(error).__name__}{said}"[:500]
        super().__init__(self.message)


class Templates:
    def __init__(self, folder: Path | None = None) -> None:
        folders = [TEMPLATES] if folder is None else [folder, TEMPLATES]
        self._environment = ImmutableSandboxedEnvironment(
            loader=ChoiceLoader([FileSystemLoader(one) for one in folders]),
            autoescape=lambda name: name is not None and name.endswith(".html.j2"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=True,  # a mended template counts at the next attempt
        )

    def render(self, message: Message, channel: str, language: str) -> Mail:
        """Raises TemplateFailed."""
        subject, text, html = (self._part(message, channel, language, part) for part in PARTS)
        return Mail(one_line(subject)[:200], text.strip() + "\n", html.strip() + "\n")

    def _part(self, message: Message, channel: str, language: str, part: str) -> str:
        kind = message.kind.lower()
        name = f"{language}/{kind}.{part}.j2"
        try:
            template = self._environment.select_template([f"{language}/{kind}.{channel}.{part}.j2", name])
            name = template.name or name
            return template.render({**message.payload, **message.more})
        except TemplateError as error:
            raise TemplateFailed(name, error) from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise TemplateFailed(name, error) from None

    def check(self, language: str, channels: Iterable[str]) -> None:
        """Try all templates with sample data before anybody is told by them. Raises Fatal."""
        for channel in channels:
            for kind in KINDS:
                for benefit_type in TRIED:
                    try:
                        self.render(sample(kind, benefit_type), channel, language)
                    except TemplateFailed as error:
                        raise Fatal(f"template {error}: mend it, or name another ALMONER_NOTIFICATIONS_LANGUAGE") from None

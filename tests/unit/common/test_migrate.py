"""A service tells from file names whether the schema is old: they must say what Alembic reads in the files."""

import re

import pytest

from libs.common.migrate import SERVICES, revisions

NAMES = sorted(folder.parent.name for folder in SERVICES.glob("*/migrations"))


@pytest.mark.parametrize("service", NAMES)
def test_a_migrations_file_name_begins_with_its_revision_and_follows_the_one_before(service: str) -> None:
    before: str | None = None
    for revision in revisions(service):
        [file] = (SERVICES / service / "migrations" / "versions").glob(f"{revision}_*.py")
        text = file.read_text()
        assert re.search(r'^revision(?:: str)? = "(.+)"$', text, re.M).group(1) == revision  # type: ignore[union-attr]
        down = re.search(r'^down_revision(?:: [^=]+)? = (?:"(.+)"|None)$', text, re.M)
        assert down is not None
        assert down.group(1) == before
        before = revision

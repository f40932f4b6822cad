"""Novu and a mail server: one of each per session, as the bank and the mapper are."""

from collections.abc import Iterator

import pytest

from libs.local.client import MailAdmin, NovuAdmin
from tests.integration.notifications.batches import SECRET
from tests.support.simulator import SimulatorProcess


@pytest.fixture(scope="session")
def novu_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    with SimulatorProcess("novu", tmp_path_factory.mktemp("novu")) as process:
        yield process


@pytest.fixture(scope="session")
def mail_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    with SimulatorProcess("mail", tmp_path_factory.mktemp("mail")) as process:
        yield process


@pytest.fixture
def novu(novu_process: SimulatorProcess) -> Iterator[NovuAdmin]:
    """Faults and refusals end with the test."""
    with NovuAdmin(novu_process.base_url) as novu:
        novu.set(api_key="key", webhook_secret=SECRET)
        yield novu
        novu.delete_faults()
        novu.refuse()


@pytest.fixture
def mail(mail_process: SimulatorProcess) -> Iterator[MailAdmin]:
    """Faults and refusals end with the test."""
    with MailAdmin(mail_process.base_url) as mail:
        yield mail
        mail.delete_faults()
        mail.refuse()

"""How the scheduler is put together."""

from libs.common.config import ServiceSettings
from libs.common.db import Database
from libs.common.outbox import Outbox
from libs.common.service import Measure, Parts
from services.scheduler.config import Settings
from services.scheduler.handlers import Scheduler


def wire(settings: ServiceSettings, database: Database) -> Parts:
    assert isinstance(settings, Settings)
    scheduler = Scheduler(database, Outbox(Settings.SERVICE), settings.schedules, settings.keep_ticks_days)
    return Parts(routes=scheduler.routes(), background=[scheduler.run], measures=[Measure("ticks", 5, scheduler.read_lateness)])

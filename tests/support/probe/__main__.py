"""python -m tests.support.probe run | consume | work | relay | migrate: the smallest service, to test the runtime with."""

from pathlib import Path

from libs.common import migrate
from libs.common.service import main
from tests.support.probe.contracts import register
from tests.support.probe.wiring import Settings, wire

if __name__ == "__main__":
    migrate.SERVICES = Path(__file__).parents[1]
    register()
    main(Settings, wire)

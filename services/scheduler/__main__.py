from libs.common.service import main
from services.scheduler.config import Settings
from services.scheduler.wiring import wire

if __name__ == "__main__":
    main(Settings, wire)

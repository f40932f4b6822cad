from libs.common.service import main
from services.allocation.config import Settings
from services.allocation.wiring import wire

if __name__ == "__main__":
    main(Settings, wire)

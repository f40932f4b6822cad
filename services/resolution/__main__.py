from libs.common.service import main
from services.resolution.config import Settings
from services.resolution.wiring import wire

if __name__ == "__main__":
    main(Settings, wire)

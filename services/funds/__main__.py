from libs.common.service import main
from services.funds.config import Settings
from services.funds.wiring import wire

if __name__ == "__main__":
    main(Settings, wire)

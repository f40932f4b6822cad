from libs.common.service import main
from services.ingestion.config import Settings
from services.ingestion.wiring import wire

if __name__ == "__main__":
    main(Settings, wire)

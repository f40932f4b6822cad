from libs.common.service import main
from services.notifications.config import Settings
from services.notifications.preview import VERBS
from services.notifications.wiring import wire

if __name__ == "__main__":
    main(Settings, wire, verbs=VERBS)

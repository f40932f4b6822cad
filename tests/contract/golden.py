"""Golden samples: the wire bytes of each event type as a release has written them, in golden/<TYPE>.json, <TYPE>.2.json, …

`python -m tests.contract.golden` adds a sample for each type whose wire bytes no sample has yet: run it before a release.
It never overwrites one. A sample goes only when no topic, dead letter or parking place can still hold such an event.
"""

import re
from pathlib import Path

from libs.common.contracts.examples import EXAMPLES
from libs.common.contracts.registry import TYPES

FOLDER = Path(__file__).with_suffix("")


def samples(event_type: str) -> list[Path]:
    """The samples of a type, oldest first."""
    name = re.compile(re.escape(event_type) + r"(\.\d+)?\.json")
    return sorted(
        (path for path in FOLDER.iterdir() if name.fullmatch(path.name)), key=lambda path: (len(path.name), path.name)
    )


def wire(event_type: str) -> bytes:
    """What this release writes for the type's example."""
    return TYPES[event_type].model_validate(EXAMPLES[event_type]).model_dump_json().encode()


def main() -> None:
    for event_type in TYPES:
        known = samples(event_type)
        body = wire(event_type)
        if all(path.read_bytes() != body for path in known):
            number = f".{len(known) + 1}" if known else ""
            path = FOLDER / f"{event_type}{number}.json"
            with path.open("xb") as file:
                file.write(body)
            print(path.name)


if __name__ == "__main__":
    main()

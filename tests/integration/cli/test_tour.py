"""The README's tour: its commands run as they stand, on a stack of their own, and show what the README says of them."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from libs.local.supervisor import ROOT


def tour() -> list[str]:
    """The commands of the tour, one line each, without their comments."""
    block = re.search(r"^## A tour$.*?```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S | re.M)
    assert block
    return [line.partition(" #")[0].strip() for line in block[1].replace("\\\n", " ").splitlines()]


def run(command: str, home: Path) -> str:
    """What a command says. Raises AssertionError where it does not end well."""
    words = shlex.split(command)
    assert words[0] == "./almoner"
    done = subprocess.run(
        [sys.executable, "-m", "libs.cli", *words[1:]],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("ALMONER_")}, "ALMONER_HOME": str(home)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,  # `up` starts thirteen processes, perhaps beside other tests
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def until_settled(envelope: str, home: Path) -> None:
    """What moves is not compared with events."""
    until = time.monotonic() + 60
    while json.loads(run(f"./almoner status {envelope} -o json", home))["stands"] != "settled":
        assert time.monotonic() < until, run(f"./almoner status {envelope}", home)


SHOWN = {
    "up": "Up. Next:",
    "simulate people": "the mapper knows 17 of 19 people",
    "submit docs/samples/drought-relief.csv --envelope-id RUN-1": "18 payments confirmed; 2 held",
    "held": "NOT_LINKED",
    "release": "2 held disbursements of RUN-1 given up",
    "simulate reverse": "the bank has given 1 payment of RUN-1 back",
    "repay": "1 disbursement of RUN-1 to be paid again",
    "simulate lost-answer": "nobody will hear of it",
    "submit docs/samples/drought-relief.csv --envelope-id RUN-2": "1 block unknown",
    "books": "events      holds",
}


def test_the_tour_shows_what_it_says(tmp_path: Path) -> None:
    commands = tour()
    assert len(commands) == 10
    home = tmp_path / "home"
    try:
        for command in commands:
            if command == "./almoner books":
                until_settled("RUN-1", home)  # of which a payment was made again
            said = run(command, home)
            expected = [text for name, text in SHOWN.items() if command.startswith(f"./almoner {name}")]
            assert expected, f"the tour has a command which nobody looks at: {command}"
            assert expected[0] in said, f"{command}\n{said}"
        assert "is to pay" in run("./almoner timeline RUN-1", home)
        places = "./almoner simulate places docs/samples/drought-relief-rice.csv --without 1"
        assert places.removeprefix("./") in (ROOT / "README.md").read_text()
        assert "PBMS has warehouses and" in run(places, home)
    finally:
        assert "Down." in run("./almoner down", home)
    shown = {name for name in SHOWN if any(command.startswith(f"./almoner {name}") for command in commands)}
    assert shown == SHOWN.keys()

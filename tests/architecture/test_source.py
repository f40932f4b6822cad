"""Rules about the source itself, which no import says."""

import re
import subprocess
from pathlib import Path

from libs.common import crash

ROOT = Path(__file__).parents[2]

# A checkout works anywhere: no folder of one machine, no registry, which may be a mirror elsewhere.
FOREIGN = re.compile(
    r"(?<![\w.<{/])/(?:home|root|tmp|Users|work)/\w"
    r"|(?:pypi|npmjs|maven|crates|rubygems)\.(?:org|com)|maven\.apache|pythonhosted|repo1\.|proxy\.golang"
    r"|--(?:extra-)?index-url|--find-links"
)


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for path in tracked():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if path != Path(__file__) and FOREIGN.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


def test_every_crash_point_is_registered_and_every_registered_one_is_reached() -> None:
    call = re.compile(r"""crash\.reached\(\s*["']([^"']+)["']""")
    reached = {
        point
        for folder in ("libs", "services")
        for path in (ROOT / folder).rglob("*.py")
        if path != Path(str(crash.__file__))
        for point in call.findall(path.read_text())
    }
    assert reached == crash.POINTS.keys()


def tracked() -> list[Path]:
    """What is, or would be, in a commit."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    paths = (ROOT / name.decode() for name in names.split(b"\0") if name)
    return [path for path in paths if path.is_file()]

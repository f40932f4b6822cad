"""Where promtool comes from: the variable PROMTOOL, the PATH, else Debian's package, unpacked into the cache and not installed."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from libs.local.kafka import cache_folder

SECONDS = 200


def promtool() -> Path:
    """Raises RuntimeError where it is not to be had: whoever needs it fails."""
    named = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if named:
        return Path(named)
    cache = cache_folder()
    path = cache / "promtool"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "promtool.lock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)  # the second to come finds the work done
            if not path.exists():
                try:
                    _download(path)
                except (OSError, subprocess.SubprocessError, ValueError) as error:
                    said = getattr(error, "stderr", None) or error
                    raise RuntimeError(
                        f"no promtool on the PATH, nor from Debian's package prometheus ({said}): name one in PROMTOOL"
                    ) from error
    return path


def _download(path: Path) -> None:
    """apt, with lists and cache of its own, needs no root. It checks the archive's signature, down to the package's sum; a lock
    of ours would name one version of one distribution, which leaves the archive at its next point release."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        scratch = Path(folder)
        (scratch / "lists" / "partial").mkdir(parents=True)
        (scratch / "cache" / "archives" / "partial").mkdir(parents=True)
        options = {"Dir::State::Lists": scratch / "lists", "Dir::Cache": scratch / "cache", "APT::Sandbox::User": ""}
        apt = ["apt-get", "-qq", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
        _run([*apt, "update"], scratch)
        _run([*apt, "download", "prometheus"], scratch)
        [package] = scratch.glob("prometheus_*.deb")
        _run(["dpkg", "-x", str(package), "unpacked"], scratch)
        (scratch / "unpacked" / "usr" / "bin" / "promtool").replace(path)


def _run(argv: list[str], folder: Path) -> None:
    subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS)

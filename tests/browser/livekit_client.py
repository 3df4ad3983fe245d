"""LiveKit's client for browsers, as npm has it; one file of it, known by its hash, is all we need.

So there is no package.json with a lock of all that it is built from. npm is the way to it because npm
knows the registry that is in use here.
"""

import base64
import hashlib
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.cached_folder import cached_folder

VERSION = "2.23.0"
INTEGRITY = "sha512-j9Kg86nJjBjNFUD+ukp2jwMCGa0k+YD5gU//RzAM+ZY3pbG631QCte7fQjwqWMmtBzhDJL9nKYuOLMv/9IbAxg=="
"""Of the package, as `npm view livekit-client@VERSION dist.integrity` tells it."""

DOWNLOAD_SECONDS = 120.0
"""3 MB."""

_SCRIPT = "livekit-client.umd.js"


class LiveKitClientNotFound(Exception):
    """npm could not get it; the text says why."""


def livekit_client(report: Callable[[str], None]) -> Path:
    """The script that gives a page `LivekitClient`; got once per machine and version."""

    def make(folder: Path) -> None:
        report(f"Downloading LiveKit's client for browsers, {VERSION}, with npm")
        _extract(_download(folder), folder / _SCRIPT)

    return cached_folder(f"livekit-client-{VERSION}", make) / _SCRIPT


def _download(folder: Path) -> Path:
    try:
        packed = subprocess.run(
            ["npm", "pack", "--loglevel=error", f"livekit-client@{VERSION}"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DOWNLOAD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LiveKitClientNotFound(f"npm: {error}") from error
    if packed.returncode != 0:
        raise LiveKitClientNotFound(f"npm could not get livekit-client:\n{packed.stdout}")
    return folder / f"livekit-client-{VERSION}.tgz"


def _extract(package: Path, script: Path) -> None:
    """Take the one member that we know by name; no path from the package is ever used."""
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != INTEGRITY:
        raise LiveKitClientNotFound(f"refused, its hash is sha512-{digest} and not {INTEGRITY}")
    with tarfile.open(package) as members:
        content = members.extractfile(f"package/dist/{_SCRIPT}")
        assert content is not None, "the package that has this hash has the file"
        script.write_bytes(content.read())

"""Scripts for browsers, as npm has them; one file of a package, known by the package's hash, is all we need.

So there is no package.json with a lock of all that they are built from. npm is the way to them because
npm knows the registry that is in use here.
"""

import base64
import hashlib
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.cached_folder import cached_folder

DOWNLOAD_SECONDS = 120.0
"""3 MB."""


class ScriptNotFound(Exception):
    """npm could not get it; the text says why."""


@dataclass(frozen=True, slots=True)
class Script:
    package: str
    version: str
    integrity: str
    """Of the package, as `npm view PACKAGE@VERSION dist.integrity` tells it."""
    name: str
    """Of the file, in the package's folder `dist`."""

    def get(self, report: Callable[[str], None]) -> Path:
        """The script; got once per machine and version."""

        def make(folder: Path) -> None:
            report(f"Downloading {self.package} {self.version} with npm")
            self._extract(self._download(folder), folder / self.name)

        return cached_folder(f"{self.package}-{self.version}", make) / self.name

    def _download(self, folder: Path) -> Path:
        try:
            packed = subprocess.run(
                ["npm", "pack", "--loglevel=error", f"{self.package}@{self.version}"],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=DOWNLOAD_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ScriptNotFound(f"npm: {error}") from error
        if packed.returncode != 0:
            raise ScriptNotFound(f"npm could not get {self.package}:\n{packed.stdout}")
        return folder / f"{self.package}-{self.version}.tgz"

    def _extract(self, package: Path, script: Path) -> None:
        """Take the one member that we know by name; no path from the package is ever used."""
        digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
        if f"sha512-{digest}" != self.integrity:
            raise ScriptNotFound(
                f"refused, the hash of {self.package} is sha512-{digest} and not {self.integrity}"
            )
        with tarfile.open(package) as members:
            content = members.extractfile(f"package/dist/{self.name}")
            assert content is not None, "the package that has this hash has the file"
            script.write_bytes(content.read())


LIVEKIT_CLIENT = Script(
    "livekit-client",
    "2.23.0",
    "sha512-j9Kg86nJjBjNFUD+ukp2jwMCGa0k+YD5gU//RzAM+ZY3pbG631QCte7fQjwqWMmtBzhDJL9nKYuOLMv/9IbAxg==",
    "livekit-client.umd.js",
)
"""Gives a page `LivekitClient`."""

TUS_CLIENT = Script(
    "tus-js-client",
    "4.3.1",
    "sha512-ZLeYmjrkaU1fUsKbIi8JML52uAocjEZtBx4DKjRrqzrZa0O4MYwT6db+oqePlspV+FxXJAyFBc/L5gwUi2OFsg==",
    "tus.min.js",
)
"""Gives a page `tus`."""

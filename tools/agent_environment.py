"""The virtual environment of agents: LiveKit Agents pins a livekit that is older than the gateway's."""

import hashlib
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

from tools.cached_folder import cached_folder
from tools.livekit_server import Report

ROOT = Path(__file__).parents[1]

REQUIREMENTS = ROOT / "requirements-agent.txt"

HELPER = ROOT / "clients" / "agent"
"""Not installed: an agent imports it from here."""

INSTALL_SECONDS = 900.0
"""Some 150 MB, installed in half a minute on a good line."""


class AgentEnvironmentFailed(Exception):
    """The agents' packages could not be installed; the text says why."""


def agent_python(report: Report) -> Path:
    """The Python that runs agents; its environment is made once per machine, lock and Python."""
    lock = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
    # A new interpreter at the same place would find none of the packages of the one before it.
    version = ".".join(map(str, sys.version_info[:3]))

    def make(folder: Path) -> None:
        report("Installing LiveKit Agents into an environment of its own (about a minute, once)")
        _make(folder)

    return _python(cached_folder(f"agents-{lock}-python{version}", make))


def agent_environ(environ: Mapping[str, str], **settings: str) -> dict[str, str]:
    """With our helper, and without what LiveKit Agents would read as settings: a person's own project,
    above all."""
    others = {name: value for name, value in environ.items() if not name.startswith("LIVEKIT_")}
    return others | {"PYTHONPATH": str(HELPER)} | settings


def _make(folder: Path) -> None:
    try:
        venv.create(folder, with_pip=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise AgentEnvironmentFailed(f"no virtual environment could be made: {error}") from error
    command: list[str | Path] = [_python(folder), "-m", "pip", "install", "--quiet"]
    command += ["--disable-pip-version-check", "--require-hashes", "--requirement", REQUIREMENTS]
    try:
        installed = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AgentEnvironmentFailed(f"not installed after {INSTALL_SECONDS:g} s") from error
    if installed.returncode != 0:
        raise AgentEnvironmentFailed(f"pip could not install {REQUIREMENTS}:\n{installed.stdout}")


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"

"""The virtual environment of the agents: LiveKit Agents pins a livekit that is older than ours."""

import hashlib
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from tests.cached_folder import cached_folder

REQUIREMENTS = Path(__file__).parents[2] / "requirements-agent.txt"

INSTALL_SECONDS = 900.0
"""Some 150 MB, installed in half a minute on a good line."""


class AgentEnvironmentFailed(Exception):
    """The agents' packages could not be installed; the text says why."""


def agent_python(report: Callable[[str], None]) -> Path:
    """The Python that runs agents; its environment is made once per machine, lock and Python."""
    lock = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
    # A new interpreter at the same place would find none of the packages of the one before it.
    version = ".".join(map(str, sys.version_info[:3]))

    def make(folder: Path) -> None:
        report("Installing LiveKit Agents for the tests (about a minute, once)")
        _make(folder)

    return _python(cached_folder(f"agents-{lock}-python{version}", make))


def _make(folder: Path) -> None:
    venv.create(folder, with_pip=True)
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

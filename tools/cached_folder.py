"""What is made once per machine: folders beside the LiveKit server in our cache."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tools.livekit_server import cache_folder


def cached_folder(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name in our cache, made by `make` unless it is there.

    It appears by a rename: whoever looks sees none or a whole one, and several processes may make it
    at once. So what is in it must not know its own path.
    """
    folder = cache_folder(os.environ) / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix="new-"))
    try:
        make(new)
        _put(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def _put(new: Path, folder: Path) -> None:
    try:
        new.rename(folder)
    except OSError:
        # Another process was faster, and its own is as good.
        if not folder.is_dir():
            raise

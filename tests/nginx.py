"""A real nginx in front of a gateway, with the configuration that the documentation recommends."""

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.programs import find_program
from tools.child_process import ChildProcess, http_status

READY_SECONDS = 30.0
"""It takes a tenth of one."""

STOP_SECONDS = 10.0

_DOCUMENTED = Path(__file__).parents[1] / "docs" / "deployment.md"

_CONFIGURATION = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr notice;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {documented}
}}
"""
"""What Debian's own has around it, with files and without privileges of its own."""


@asynccontextmanager
async def running_nginx(upstream: str, folder: Path, *leaving_out: str) -> AsyncIterator[str]:
    """Its address; without the directives named."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    configuration = folder / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            # Started by root it would take another user's name for its work, which may not write here.
            user="user root;" if os.geteuid() == 0 else "",
            documented=_documented(upstream.removeprefix("http://"), port, leaving_out),
        )
    )
    program = find_program("nginx")
    assert program is not None
    command: list[str | Path] = [program, "-p", folder, "-c", configuration, "-e", "stderr"]
    with (
        (folder / "nginx.log").open("wb") as log,
        ChildProcess(command, env={}, output=log) as nginx,
    ):
        await asyncio.to_thread(
            nginx.wait_until,
            lambda: http_status("127.0.0.1", port, "/livez") == 200,
            within=READY_SECONDS,
        )
        yield f"http://127.0.0.1:{port}"
        await asyncio.to_thread(nginx.stop, within=STOP_SECONDS)


def _documented(upstream: str, port: int, leaving_out: tuple[str, ...]) -> str:
    (text,) = re.findall(r"```nginx\n(.*?)```", _DOCUMENTED.read_text(), re.DOTALL)
    text, servers = re.subn(r"(    server [\d.:]+;\n)+", f"    server {upstream};\n", text)
    text, listens = re.subn(r"listen 80;", f"listen 127.0.0.1:{port};", text)
    assert (servers, listens) == (1, 1)
    for directive in leaving_out:
        text, left_out = re.subn(rf"    {directive} [^;]*;\n", "", text)
        assert left_out == 1
    return text

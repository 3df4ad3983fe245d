"""What delivers events, ready to be measured: the gateway, nchan, Mercure, and a stock EventSourceResponse.

Each is one process with one thread for its work, but Mercure, which takes what cores there are.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt

from benchmarks import machine
from benchmarks.memory_gateway import LOOPBACK, ROOM, Setup
from benchmarks.stage import READY_SECONDS, STOP_SECONDS, Worker, free_port, report, started
from gateway.rooms.tokens import mint
from tools.child_process import ChildEnded, ChildNotReady, ChildProcess, http_status, last_lines
from tools.livekit_server import API_KEY, API_SECRET, cache_folder

MERCURE = "github.com/dunglas/mercure"
MERCURE_VERSION = "0.24.2"
MERCURE_TAGS = "deprecated_server,deprecated_transport"
"""Those of its program without Caddy around it, which has a bare HTTP server."""

BUILD_SECONDS = 300.0
"""Some 40 on two cores, most of it for what it depends on."""

MERCURE_SECRET = "the-secret-of-a-benchmark-on-the-loopback-interface"

NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

POSTS_AT_ONCE = 8
"""Connections that publish: with one, the next event would wait for the answer to the last."""

TOKENS_TTL = timedelta(hours=1)

# A browser's head with a token is longer than nginx's buffer of 1 KB: each would take another of 8 KB.
_NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
load_module {module};
pid nginx.pid;
error_log stderr error;
{user}
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_header_buffer_size 2k;
    keepalive_requests 100000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    nchan_max_reserved_memory 256M;
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location = /pub {{
            nchan_publisher;
            nchan_channel_id $arg_id;
            nchan_message_buffer_length 1000;
        }}
        location = /sub {{
            nchan_subscriber eventsource;
            nchan_channel_id $arg_id;
            nchan_subscriber_first_message newest;
        }}
    }}
}}
"""

_BROWSER = "\r\n".join(
    (
        "GET {path} HTTP/1.1",
        "Host: 127.0.0.1:{port}",
        "Connection: keep-alive",
        'sec-ch-ua-platform: "Windows"',
        "User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
        " Chrome/141.0.0.0 Safari/537.36",
        "Accept: text/event-stream",
        'sec-ch-ua: "Google Chrome";v="141", "Not?A_Brand";v="8", "Chromium";v="141"',
        "Cache-Control: no-cache",
        "sec-ch-ua-mobile: ?0",
        "Sec-Fetch-Site: same-origin",
        "Sec-Fetch-Mode: cors",
        "Sec-Fetch-Dest: empty",
        "Referer: https://app.example/rooms/bench?tab=conversation",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Accept-Language: en-GB,en;q=0.9,de;q=0.8",
        "Cookie: _ga=GA1.1.1287429033.1730000000; session=8e03978e40d58e03978e40d58e03978e40d5; theme=dark",
        "{more}\r\n",
    )
)
"""What Chromium sends for an EventSource to its own site. It has the token in the address, where an
EventSource can have it."""


class NotAvailable(Exception):
    """It cannot be measured here; the text says why."""


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    port: int
    path: str
    marker: str
    """What stands directly before a text in its events."""
    pids: dict[str, int]
    target: dict[str, Any] | None = None
    """For who publishes; None where nobody does."""
    topics: int = 1
    control: Worker | None = None

    def place(self, tokens: Sequence[str] = ("none",), more: str = "") -> dict[str, Any]:
        """For readers; `more` are header lines, each with its end."""
        request = _BROWSER.format(path=self.path, port=self.port, more=more)
        return {
            "address": f"{LOOPBACK}:{self.port}",
            "request": request,
            "tokens": list(tokens),
            "topics": self.topics,
            "marker": self.marker,
        }

    def cpu(self) -> float:
        return sum(machine.cpu_seconds(self.pids).values())

    def memory(self) -> int:
        return sum(machine.memory(pid) for pid in self.pids.values())


def gateway_tokens(count: int, room: str = ROOM) -> list[str]:
    """Of so many who read unseen: they all read one log."""
    return [
        mint(
            API_KEY,
            API_SECRET,
            room=room,
            identity=f"reader-{number}",
            ttl=TOKENS_TTL,
            hidden=True,
        )
        for number in range(count)
    ]


def gateway_path(topic: str, room: str = ROOM) -> str:
    return f"/rooms/{room}/topics/{topic}/events?presence=none&replay=none&access_token=TOKEN"


@asynccontextmanager
async def memory_gateway(setup: Setup) -> AsyncIterator[Server]:
    command = (sys.executable, "-m", "benchmarks.memory_gateway")
    async with started("gateway", command, json.dumps(asdict(setup))) as worker:
        http, lines = worker.beginning
        yield Server(
            "gateway",
            http,
            gateway_path("topic-TOPIC"),
            '"text":"',
            {"gateway": worker.pid},
            {"address": f"{LOOPBACK}:{lines}"},
            setup.topics,
            worker,
        )


@contextmanager
def nchan() -> Iterator[Server]:
    """Raises NotAvailable."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None or not NCHAN_MODULE.is_file():
        raise NotAvailable("not installed (Debian: apt-get install libnginx-mod-nchan)")
    port, files = free_port(), machine.most_files()
    with tempfile.TemporaryDirectory(prefix="bench-nchan-") as folder:
        configuration = Path(folder, "nginx.conf")
        configuration.write_text(
            _NGINX.format(
                files=files,
                connections=files - 500,
                module=NCHAN_MODULE,
                port=port,
                # Started by root it would take another user's name for its work, which may not write here.
                user="user root;" if os.geteuid() == 0 else "",
            )
        )
        command = [program, "-p", folder, "-c", str(configuration), "-e", "stderr"]
        with _running(command, port, "/pub?id=probe", Path(folder)) as child:
            pids = {"master": child.pid}
            for number, pid in enumerate(machine.children(child.pid)):
                pids[f"worker {number}"] = pid
            head = _post_head(port, "/pub?id=0", "text/plain")
            target = _posting(port, head, "")
            yield Server("nchan", port, "/sub?id=TOPIC&access_token=TOKEN", "data: ", pids, target)


@contextmanager
def mercure() -> Iterator[Server]:
    """Raises NotAvailable."""
    program, port = _mercure_program(), free_port()
    with tempfile.TemporaryDirectory(prefix="bench-mercure-") as folder:
        options = {
            "--addr": f"{LOOPBACK}:{port}",
            "--jwt-key": MERCURE_SECRET,
            "--transport-url": "local://local",  # no history, which is its fastest
            "--read-timeout": "0s",
            "--write-timeout": "0s",
        }
        command = [str(program), "--allow-anonymous"]
        command += [f"{name}={value}" for name, value in options.items()]
        with _running(command, port, "/healthz", Path(folder)) as child:
            token = jwt.encode({"mercure": {"publish": ["*"]}}, MERCURE_SECRET)
            head = _post_head(
                port,
                "/.well-known/mercure",
                "application/x-www-form-urlencoded",
                f"Authorization: Bearer {token}\r\n",
            )
            yield Server(
                "Mercure",
                port,
                "/.well-known/mercure?topic=topic-TOPIC&access_token=TOKEN",
                "data: ",
                {"mercure": child.pid},
                _posting(port, head, "topic=topic-0&data="),
            )


@contextmanager
def bare_sse() -> Iterator[Server]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-bare-") as folder:
        command = [sys.executable, "-m", "benchmarks.bare_sse", str(port)]
        with _running(command, port, "/", Path(folder), Path.cwd()) as child:
            yield Server(
                "sse-starlette", port, "/events?access_token=TOKEN", "data: ", {"it": child.pid}
            )


def _post_head(port: int, path: str, kind: str, more: str = "") -> str:
    return f"POST {path} HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nContent-Type: {kind}\r\n{more}"


def _posting(port: int, head: str, prefix: str) -> dict[str, Any]:
    return {
        "address": f"{LOOPBACK}:{port}",
        "head": head,
        "prefix": prefix,
        "connections": POSTS_AT_ONCE,
    }


@contextmanager
def _running(
    command: Sequence[str],
    port: int,
    probe: str,
    folder: Path,
    directory: Path | None = None,
) -> Iterator[ChildProcess]:
    """The program, once it answers; ended with the context. Raises NotAvailable."""
    log = folder / "log"
    # Without this shell's own: Mercure reads its settings from any variable.
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    if directory is not None:
        environment["PYTHONPATH"] = str(directory)
    with log.open("wb") as output:
        child = ChildProcess(command, env=environment, output=output)
    try:
        child.wait_or_kill(
            lambda: http_status(LOOPBACK, port, probe) is not None, within=READY_SECONDS
        )
    except (ChildEnded, ChildNotReady) as error:
        raise NotAvailable(f"did not start ({error}): {last_lines(log, 3)}") from error
    try:
        yield child
    finally:
        child.stop(within=STOP_SECONDS, insist_every=STOP_SECONDS / 4)


def _mercure_program() -> Path:
    """Built at the first use, in a module of its own that only names it. Raises NotAvailable."""
    program = cache_folder(os.environ) / f"mercure-{MERCURE_VERSION}"
    if program.is_file():
        return program
    go = shutil.which("go")
    if go is None:
        raise NotAvailable("not built: Go is not installed")
    report(f"Building Mercure {MERCURE_VERSION} (once; less than a minute)")
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent, prefix="new-") as folder:
        made = Path(folder, program.name)
        build = ("build", "-buildvcs=false", "-mod=mod", "-tags", MERCURE_TAGS, "-o", str(made))
        for command in (
            ("mod", "init", "bench"),
            ("get", f"{MERCURE}@v{MERCURE_VERSION}"),
            (*build, f"{MERCURE}/cmd/mercure"),
        ):
            _go(go, command, folder)
        made.replace(program)
    return program


def _go(go: str, command: Sequence[str], folder: str) -> None:
    environment = {**os.environ, "CGO_ENABLED": "0"}
    try:
        subprocess.run(
            (go, *command),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        reason = " ".join(" ".join(error.stderr.splitlines()[-2:]).split())
        raise NotAvailable(f"not built (go {command[0]}: {reason})") from error
    except subprocess.TimeoutExpired as error:
        raise NotAvailable(f"not built within {BUILD_SECONDS:g} s") from error

"""A real LiveKit server for development and for the tests: found or made, started, stopped.

LiveKit is in Go and no Python package carries its server. So it is looked for where people have it,
then taken from its official release, then built from its published Go module. The standard library
is enough here, so that this runs before anything else of the project does.
"""

import hashlib
import http.client
import json
import os
import platform
import shutil
import socket
import tarfile
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from tools.child_process import ChildEnded, ChildNotReady, ChildProcess, http_status, last_lines

Report = Callable[[str], None]
"""Takes one line that tells a person what goes on."""

VERSION = "1.13.5"
PROGRAM = "livekit-server"
RELEASES = "https://github.com/livekit/livekit/releases/download"
GO_PACKAGE = f"github.com/livekit/livekit-server/cmd/server@v{VERSION}"

RELEASED = {
    ("Linux", "x86_64"): "linux_amd64.tar.gz",
    ("Linux", "aarch64"): "linux_arm64.tar.gz",
}
"""What the release has an archive for. There is none for macOS: Homebrew builds it there."""

STALL_SECONDS = 5.0
"""Without an answer or a byte for so long, the release is not reached from here: build instead."""

DOWNLOAD_SECONDS = 600.0
"""A server that sends a byte now and then never stalls; some 20 MB take less on any usable line."""

BUILD_SECONDS = 1200.0
"""On two cores a build takes two to three minutes, and a slow line has 150 modules to fetch first."""

BUILD_REPORT_SECONDS = 15.0
"""A person who sees nothing for longer believes that it hangs."""

READY_SECONDS = 20.0
"""It listens after some 0.1 s; a busy machine that runs every test at once needs more."""

STOP_SECONDS = 5.0
"""It ends within milliseconds of a SIGTERM that it heeds (see INSIST_SECONDS)."""

INSIST_SECONDS = 0.3
"""Between two SIGTERMs. LiveKit ignores the first one in the 100 ms after it began to listen, and lets
it wait for as long as participants stay; the second one it takes for an order."""

PORT_RACES = 3
"""A port that was free a moment ago may be taken when the server asks for it; thrice is no accident."""

API_KEY = "devkey"
API_SECRET = "secret"  # noqa: S105 - what every LiveKit server has that runs with --dev

_LOOPBACK = "127.0.0.1"
_CHUNK_BYTES = 256 * 1024
_CHECKSUMS_BYTES = 64 * 1024
_MISTAKEN_FOR_SETTINGS = ("NODE_IP", "UDP_PORT", "REDIS_HOST", "REDIS_PASSWORD")


class LiveKitServerError(Exception):
    """There is no LiveKit server to work with; the text is for a person and says what to do."""


class LiveKitServerNotFound(LiveKitServerError):
    """None is installed, and none could be downloaded or built."""


class LiveKitServerFailed(LiveKitServerError):
    """It was started, and ended or never got ready."""


class _Unavailable(Exception):
    """This way to get the server leads nowhere; the next one may."""


# Finding


def find_livekit_server(
    report: Report, *, environ: Mapping[str, str] | None = None, releases: str = RELEASES
) -> Path:
    """The path of a LiveKit server program that runs here, made if need be.

    May be called by several processes at once: each makes its own copy and renames it into place.
    """
    environ = os.environ if environ is None else environ
    if named := environ.get("LIVEKIT_SERVER_BIN"):
        return _named(Path(named).expanduser().absolute())
    if installed := shutil.which(PROGRAM, path=environ.get("PATH", os.defpath)):
        return Path(installed).absolute()
    cached = cache_folder(environ) / f"livekit-server-{VERSION}"
    if not _is_program(cached):
        _make(cached, environ, releases, report)
    return cached


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Ours, where the XDG base directory specification wants it; a relative path there counts as none."""
    named = Path(environ.get("XDG_CACHE_HOME", ""))
    parent = named if named.is_absolute() else Path("~/.cache").expanduser()
    return parent / "livekit-sse-gateway"


def _named(program: Path) -> Path:
    if not _is_program(program):
        raise LiveKitServerNotFound(
            f"LIVEKIT_SERVER_BIN is {program}, and that is no program that can be run here."
        )
    return program


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _make(program: Path, environ: Mapping[str, str], releases: str, report: Report) -> None:
    failures = []
    for name, way in {
        "its official release": lambda folder: _download(folder, releases, report),
        "its source": lambda folder: _build(folder, environ, report),
    }.items():
        try:
            _install(way, program)
        except (_Unavailable, OSError) as error:
            report(f"The LiveKit server from {name}: {error}")
            failures.append(f"  from {name}: {error}")
        else:
            report(f"The LiveKit server {VERSION} is in {program} now")
            return
    raise LiveKitServerNotFound(_what_to_do(failures))


def _install(way: Callable[[Path], Path], program: Path) -> None:
    """Whoever looks for the program sees none or a whole one: it appears by a rename."""
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=program.parent, prefix="new-", ignore_cleanup_errors=True
    ) as folder:
        made = way(Path(folder))
        made.chmod(0o755)
        made.replace(program)


def _what_to_do(failures: list[str]) -> str:
    return "\n".join(
        [
            "No LiveKit server: none on the PATH, and none could be made.",
            *failures,
            "Do one of these, then try again:",
            "  install it: 'brew install livekit' on macOS; elsewhere see"
            " https://docs.livekit.io/home/self-hosting/local/",
            "  install Go (https://go.dev/doc/install), which builds it here",
            "  set LIVEKIT_SERVER_BIN to the path of a livekit-server program",
            "  set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET to a server that runs already",
        ]
    )


# Downloading the release


def _download(folder: Path, releases: str, report: Report) -> Path:
    system = (platform.system(), platform.machine())
    if system not in RELEASED:
        raise _Unavailable(f"it has none for {' on '.join(system)}")
    name = f"livekit_{VERSION}_{RELEASED[system]}"
    report(f"Downloading the LiveKit server: {releases}/v{VERSION}/{name}")
    archive = folder / name
    try:
        expected = _expected_checksum(f"{releases}/v{VERSION}/checksums.txt", name)
        checksum = _fetch(f"{releases}/v{VERSION}/{name}", archive)
    except (OSError, http.client.HTTPException) as error:
        raise _Unavailable(f"not reached ({error})") from error
    if checksum != expected:
        raise _Unavailable(
            f"refused, {name} has the SHA-256 checksum {checksum} and should have {expected}"
        )
    return _extract(archive, folder / PROGRAM)


def _expected_checksum(url: str, name: str) -> str:
    with _open(url) as response:
        lines = response.read(_CHECKSUMS_BYTES).decode(errors="replace").splitlines()
    checksums = {
        fields[1]: fields[0].lower() for fields in map(str.split, lines) if len(fields) == 2
    }
    if name not in checksums:
        raise _Unavailable(f"refused, its checksums.txt does not list {name}")
    return checksums[name]


def _fetch(url: str, target: Path) -> str:
    """Save what is at `url`; its SHA-256 checksum."""
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    checksum = hashlib.sha256()
    with _open(url) as response, target.open("wb") as file:
        while chunk := response.read(_CHUNK_BYTES):
            if time.monotonic() > deadline:
                raise _Unavailable(f"not complete after {DOWNLOAD_SECONDS:g} s")
            checksum.update(chunk)
            file.write(chunk)
    return checksum.hexdigest()


def _open(url: str) -> IO[bytes]:
    response: IO[bytes] = urllib.request.urlopen(url, timeout=STALL_SECONDS)  # noqa: S310 - ours
    return response


def _extract(archive: Path, target: Path) -> Path:
    """Take the one member that we know by name; no path from the archive is ever used."""
    try:
        with (
            tarfile.open(archive) as tar,
            _regular_file(tar) as content,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(content, file)
    except (KeyError, EOFError, tarfile.TarError, zlib.error) as error:
        raise _Unavailable(f"{archive.name} has no {PROGRAM} that can be taken out") from error
    return target


def _regular_file(tar: tarfile.TarFile) -> IO[bytes]:
    member = tar.getmember(PROGRAM)
    content = tar.extractfile(member) if member.isfile() else None
    if content is None:
        raise KeyError(PROGRAM)
    return content


# Building from source


def _build(folder: Path, environ: Mapping[str, str], report: Report) -> Path:
    go = shutil.which("go", path=environ.get("PATH", os.defpath))
    if go is None:
        raise _Unavailable("Go is not installed")
    report(f"Building the LiveKit server with go install {GO_PACKAGE} (takes some minutes, once)")
    log = folder / "build.log"
    # Without cgo, as the release is built: no C compiler is needed. Go's own temporary files go the way
    # of ours when the build is broken off.
    env = {**environ, "GOBIN": str(folder), "GOTMPDIR": str(folder), "CGO_ENABLED": "0"}
    with (
        log.open("wb") as output,
        ChildProcess([go, "install", GO_PACKAGE], env=env, output=output) as build,
    ):
        exit_code = _watch_build(build, report)
    made = folder / "server"
    if exit_code != 0 or not _is_program(made):
        raise _Unavailable(f"exit code {exit_code}\n{last_lines(log)}")
    return made


def _watch_build(build: ChildProcess, report: Report) -> int:
    started = time.monotonic()
    while (exit_code := build.wait(BUILD_REPORT_SECONDS)) is None:
        seconds = time.monotonic() - started
        if seconds > BUILD_SECONDS:
            raise _Unavailable(f"not done after {BUILD_SECONDS:g} s")
        report(f"Still building the LiveKit server ({seconds:.0f} s)")
    return exit_code


# Running


@dataclass(frozen=True, slots=True)
class Ports:
    signal: int
    """HTTP and WebSocket, on the loopback address: what LIVEKIT_URL names."""
    rtc_tcp: int
    rtc_udp: int


STANDARD_PORTS = Ports(signal=7880, rtc_tcp=7881, rtc_udp=7882)
"""LiveKit's own, which every example and every client's default names."""


class LiveKitServer:
    """A LiveKit server of ours, in development mode, for this machine alone.

    It keeps its ports for life: after `stop` or `kill`, `start` brings it back at the same `url`.
    """

    api_key = API_KEY
    api_secret = API_SECRET

    def __init__(
        self, binary: Path, ports: Ports, log: Path, webhook_urls: Sequence[str] = ()
    ) -> None:
        self.binary = binary
        self.ports = ports
        self.log = log
        self.webhook_urls = list(webhook_urls)
        """Where it tells of rooms and participants, from its next start on."""
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        return f"ws://{_LOOPBACK}:{self.ports.signal}"

    @property
    def pid(self) -> int:
        if self._child is None:
            raise LiveKitServerError("The LiveKit server is stopped, and has no process.")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers; LiveKitServerFailed if it does not."""
        if self.running:
            return
        with self.log.open("ab") as output:
            command = _command(self.binary, self.ports, self.webhook_urls)
            child = ChildProcess(command, env=_clean_env(), output=output)
        try:
            child.wait_or_kill(self._answers, within=READY_SECONDS)
        except (ChildEnded, ChildNotReady) as error:
            raise self._failed(error) from error
        self._child = child

    def stop(self) -> None:
        """End it, participants or not; allowed when it has ended."""
        if self._child is not None:
            self._child.stop(within=STOP_SECONDS, insist_every=INSIST_SECONDS)
            self._child = None

    def kill(self) -> None:
        """End it as a crash would: its participants learn it from their broken connections."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def restart(self) -> None:
        """Stop it and start it again on the same ports; all its rooms are gone."""
        self.stop()
        self.start()

    def last_log_lines(self) -> str:
        return last_lines(self.log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        return http_status(_LOOPBACK, self.ports.signal, "/") is not None

    def _failed(self, error: Exception) -> LiveKitServerFailed:
        return LiveKitServerFailed(
            f"The LiveKit server did not start: {error}. The end of its log, {self.log}:\n"
            f"{self.last_log_lines()}"
        )


def start_livekit_server(
    binary: Path,
    *,
    report: Report,
    log: Path,
    port: int | None = None,
    webhook_urls: Sequence[str] = (),
) -> LiveKitServer:
    """Start `binary` and return once it answers; a context manager that stops it.

    `port` is the signal port: None for LiveKit's usual ports, each where it is free; 0 for free
    ports only; any other number must be free.
    """
    races = 0
    while True:
        server = LiveKitServer(binary, _choose_ports(port, report), log, webhook_urls)
        try:
            server.start()
            break
        except LiveKitServerFailed as error:
            races += 1
            if races == PORT_RACES or "address already in use" not in str(error):
                raise
    report(
        f"{binary} is at {server.url}"
        f" (WebRTC: TCP {server.ports.rtc_tcp}, UDP {server.ports.rtc_udp})"
    )
    return server


def _command(binary: Path, ports: Ports, webhook_urls: list[str]) -> list[str | Path]:
    config = {
        # WebRTC over the loopback interface alone: nothing is offered to the network around, and a
        # laptop without any network works too.
        "rtc": {"enable_loopback_candidate": True, "ips": {"includes": [f"{_LOOPBACK}/32"]}},
        "webhook": {"api_key": API_KEY, "urls": webhook_urls},
    }
    return [
        binary,
        "--dev",
        *("--bind", _LOOPBACK),
        *("--node-ip", _LOOPBACK),
        *("--port", str(ports.signal)),
        *("--rtc.tcp_port", str(ports.rtc_tcp)),
        *("--udp-port", str(ports.rtc_udp)),
        # At --dev's own level, debug, the log costs more than the work.
        *("--logging.level", "info"),
        *("--config-body", json.dumps(config)),
    ]


def _clean_env() -> dict[str, str]:
    """Without what LiveKit would read as settings: our own names, and those of a person's Redis."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LIVEKIT_") and name not in _MISTAKEN_FOR_SETTINGS
    }


def _choose_ports(port: int | None, report: Report) -> Ports:
    wanted = STANDARD_PORTS if port is None else Ports(port, 0, 0)
    # All three are held until the last is chosen, or the same number could be chosen twice.
    with ExitStack() as held:
        signal = held.enter_context(_bound(socket.SOCK_STREAM, _LOOPBACK, wanted.signal))
        rtc_tcp = held.enter_context(_bound(socket.SOCK_STREAM, "", wanted.rtc_tcp))
        rtc_udp = held.enter_context(_bound(socket.SOCK_DGRAM, _LOOPBACK, wanted.rtc_udp))
        ports = Ports(*(bound.getsockname()[1] for bound in (signal, rtc_tcp, rtc_udp)))
    if port and ports.signal != port:
        raise LiveKitServerFailed(f"Port {port} is taken by another program.")
    if port is None and ports.signal != wanted.signal:
        report(
            f"Port {wanted.signal} is taken. If that is a LiveKit server of yours, set LIVEKIT_URL,"
            " LIVEKIT_API_KEY and LIVEKIT_API_SECRET to use it; this starts another."
        )
    return ports


def _bound(kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    """A socket bound to `port`, or to some free one where that is taken."""
    bound = socket.socket(socket.AF_INET, kind)
    if kind is socket.SOCK_STREAM:
        # As the server itself does: connections that have just ended do not count as taken.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.bind((host, 0))
    return bound

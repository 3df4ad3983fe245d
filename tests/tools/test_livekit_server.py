import hashlib
import io
import platform
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from livekit import api, rtc

from tools.child_process import http_status
from tools.livekit_server import (
    GO_PACKAGE,
    PROGRAM,
    RELEASED,
    STANDARD_PORTS,
    STOP_SECONDS,
    VERSION,
    LiveKitServer,
    LiveKitServerError,
    LiveKitServerFailed,
    LiveKitServerNotFound,
    cache_folder,
    find_livekit_server,
    start_livekit_server,
)

SYSTEM = (platform.system(), platform.machine())
needs_release = pytest.mark.skipif(SYSTEM not in RELEASED, reason="LiveKit releases none for here")


class Place:
    """A machine of its own as far as looking for a LiveKit server goes: a PATH, a cache, a release."""

    def __init__(self, folder: Path, releases: str) -> None:
        self.path = folder / "bin"
        self.path.mkdir()
        self.environ = {"PATH": str(self.path), "XDG_CACHE_HOME": str(folder / "cache")}
        self.cache = folder / "cache" / "livekit-sse-gateway"
        self.cached = self.cache / f"livekit-server-{VERSION}"
        self.releases = releases
        self.reports: list[str] = []

    def find(self) -> Path:
        return find_livekit_server(
            self.reports.append, environ=self.environ, releases=self.releases
        )

    def install_go(self, *lines: str) -> None:
        program(self.path / "go", *lines)


def program(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


@pytest.fixture
def place(tmp_path: Path, unused_port: int) -> Place:
    """Nothing is installed, and the release is out of reach."""
    return Place(tmp_path, f"http://127.0.0.1:{unused_port}")


# Found


def test_the_program_that_the_environment_names_comes_first(place: Place) -> None:
    named = program(place.path / "mine")
    program(place.path / PROGRAM)
    place.environ["LIVEKIT_SERVER_BIN"] = str(named)
    assert place.find() == named


@pytest.mark.parametrize("content", [None, "not executable"])
def test_a_named_program_that_cannot_run_is_told_not_replaced(
    place: Place, tmp_path: Path, content: str | None
) -> None:
    named = tmp_path / "mine"
    if content is not None:
        named.write_text(content)
    program(place.path / PROGRAM)
    place.environ["LIVEKIT_SERVER_BIN"] = str(named)
    with pytest.raises(LiveKitServerNotFound, match=f"LIVEKIT_SERVER_BIN is {named}"):
        place.find()


def test_an_installed_program_comes_before_our_own_copy(place: Place) -> None:
    program(place.cached)
    installed = program(place.path / PROGRAM)
    assert place.find() == installed


def test_our_own_copy_is_used_without_a_word(place: Place) -> None:
    program(place.cached)
    assert place.find() == place.cached
    assert place.reports == []


def test_a_relative_cache_folder_counts_as_none() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "here"}) == cache_folder({})
    assert cache_folder({}) == Path.home() / ".cache" / "livekit-sse-gateway"


# Downloaded


class Release:
    """A release as GitHub serves it, on this machine."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.name = f"livekit_{VERSION}_{RELEASED[SYSTEM]}"
        self.folder = folder / f"v{VERSION}"
        self.folder.mkdir()

    def publish(self, archive: bytes, *, checksum: str | None = None) -> None:
        checksum = checksum or hashlib.sha256(archive).hexdigest()
        (self.folder / self.name).write_bytes(archive)
        (self.folder / "checksums.txt").write_text(
            f"{'0' * 64}  livekit_{VERSION}_plan9_mips.tar.gz\n{checksum}  {self.name}\n"
        )


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    folder = tmp_path / "releases"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield Release(folder, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def an_archive(content: bytes, *, kind: bytes = tarfile.REGTYPE) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("LICENSE", "../outside", PROGRAM):
            member = tarfile.TarInfo(name)
            member.type = kind if name == PROGRAM else tarfile.REGTYPE
            member.linkname = "/bin/sh"
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


@needs_release
def test_the_release_is_downloaded_once(place: Place, release: Release) -> None:
    release.publish(an_archive(b"the server"))
    place.releases = release.url
    assert place.find() == place.cached
    assert place.cached.read_bytes() == b"the server"
    assert list(place.cache.iterdir()) == [place.cached]
    assert place.reports == [
        f"Downloading the LiveKit server: {release.url}/v{VERSION}/{release.name}",
        f"The LiveKit server {VERSION} is in {place.cached} now",
    ]
    place.reports.clear()
    assert place.find() == place.cached
    assert place.reports == []


@needs_release
def test_a_download_with_another_checksum_is_refused(place: Place, release: Release) -> None:
    archive = an_archive(b"not what was released")
    release.publish(archive, checksum="ab" * 32)
    place.releases = release.url
    with pytest.raises(LiveKitServerNotFound, match="Go is not installed"):
        place.find()
    assert (
        f"The LiveKit server from its official release: refused, {release.name} has the SHA-256"
        f" checksum {hashlib.sha256(archive).hexdigest()} and should have {'ab' * 32}"
    ) in place.reports
    assert list(place.cache.iterdir()) == []


@needs_release
def test_a_download_that_is_not_in_the_list_of_checksums_is_refused(
    place: Place, release: Release
) -> None:
    (release.folder / "checksums.txt").write_text("<html>Not what you think</html>\n")
    place.releases = release.url
    with pytest.raises(LiveKitServerNotFound, match=r"checksums\.txt does not list"):
        place.find()


@needs_release
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE])
def test_only_a_regular_file_is_taken_out_of_an_archive(
    place: Place, release: Release, kind: bytes
) -> None:
    release.publish(an_archive(b"", kind=kind))
    place.releases = release.url
    with pytest.raises(LiveKitServerNotFound, match=f"has no {PROGRAM} that can be taken out"):
        place.find()


@needs_release
def test_an_archive_that_is_none_is_refused(place: Place, release: Release) -> None:
    release.publish(b"no archive")
    place.releases = release.url
    with pytest.raises(LiveKitServerNotFound, match=f"has no {PROGRAM} that can be taken out"):
        place.find()


# Built


def test_without_a_release_it_is_built_from_source(place: Place) -> None:
    place.install_go('echo "$@" > "$GOBIN/server"', '/bin/chmod +x "$GOBIN/server"')
    assert place.find() == place.cached
    assert place.cached.read_text() == f"install {GO_PACKAGE}\n"
    assert list(place.cache.iterdir()) == [place.cached]


def test_whoever_looks_at_the_same_time_finds_a_whole_one(place: Place) -> None:
    place.install_go(
        'echo whole > "$GOBIN/server"', '/bin/sleep 0.1; /bin/chmod +x "$GOBIN/server"'
    )
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(place.find) for _ in range(4)]
    assert {future.result() for future in found} == {place.cached}
    assert place.cached.read_text() == "whole\n"
    assert list(place.cache.iterdir()) == [place.cached]


def test_a_failed_build_tells_why(place: Place) -> None:
    place.install_go("echo 'go: the disk is full' >&2", "exit 3")
    with pytest.raises(LiveKitServerNotFound, match=r"exit code 3\ngo: the disk is full"):
        place.find()
    assert list(place.cache.iterdir()) == []


def test_where_nothing_can_be_found_or_made_it_says_what_to_do(place: Place) -> None:
    with pytest.raises(LiveKitServerNotFound) as caught:
        place.find()
    told = str(caught.value)
    assert "from its official release: " in told
    assert "from its source: Go is not installed" in told
    for way_out in ("brew install livekit", "LIVEKIT_SERVER_BIN", "LIVEKIT_URL", "go.dev"):
        assert way_out in told


def test_a_cache_that_cannot_be_written_is_told(place: Place, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(LiveKitServerNotFound, match=str(tmp_path / "cache")):
        place.find()


# Run


def answers(server: LiveKitServer) -> bool:
    return http_status("127.0.0.1", server.ports.signal, "/") == 200


def a_token(server: LiveKitServer, identity: str) -> str:
    grants = api.VideoGrants(room_join=True, room="room")
    token = api.AccessToken(server.api_key, server.api_secret)
    return token.with_identity(identity).with_grants(grants).to_jwt()


async def test_a_participant_joins_with_the_servers_key(server: LiveKitServer) -> None:
    room = rtc.Room()
    await room.connect(server.url, a_token(server, "alice"))
    assert (room.name, room.local_participant.identity) == ("room", "alice")
    await room.disconnect()


async def test_stopping_does_not_wait_for_participants(server: LiveKitServer) -> None:
    room = rtc.Room()
    await room.connect(server.url, a_token(server, "alice"))
    started = time.monotonic()
    server.stop()
    # After STOP_SECONDS it would have been killed.
    assert time.monotonic() - started < STOP_SECONDS
    await room.disconnect()


def test_it_is_back_at_the_same_address_after_a_restart_and_after_a_crash(
    server: LiveKitServer,
) -> None:
    url, pid = server.url, server.pid
    server.restart()
    assert answers(server)
    assert (server.url, server.pid != pid) == (url, True)
    server.kill()
    assert not server.running
    assert not answers(server)
    server.start()
    assert answers(server)
    assert server.url == url


def test_a_stopped_server_is_gone(server: LiveKitServer) -> None:
    server.stop()
    assert not answers(server)
    with pytest.raises(LiveKitServerError, match="has no process"):
        _ = server.pid
    server.stop()


def test_where_the_usual_ports_are_taken_it_takes_others(
    livekit_binary: Path, tmp_path: Path
) -> None:
    reports: list[str] = []
    with ExitStack() as held:
        # One that another program has already is as good as one that we take.
        with suppress(OSError):
            held.enter_context(socket.create_server(("127.0.0.1", STANDARD_PORTS.signal)))
        with suppress(OSError):
            held.enter_context(socket.create_server(("", STANDARD_PORTS.rtc_tcp)))
        with start_livekit_server(
            livekit_binary, report=reports.append, log=tmp_path / "log"
        ) as server:
            assert server.ports.signal != STANDARD_PORTS.signal
            assert server.ports.rtc_tcp != STANDARD_PORTS.rtc_tcp
            assert answers(server)
    assert reports[0].startswith("Port 7880 is taken. If that is a LiveKit server of yours, set")
    assert server.url in reports[1]


def test_a_port_of_ones_own_choice_must_be_free(
    livekit_binary: Path, server: LiveKitServer, tmp_path: Path, unused_port: int
) -> None:
    start: Callable[..., LiveKitServer] = partial(
        start_livekit_server, livekit_binary, report=print, log=tmp_path / "another"
    )
    with pytest.raises(LiveKitServerFailed, match="is taken by another program"):
        start(port=server.ports.signal)
    with start(port=unused_port) as another:
        assert another.url == f"ws://127.0.0.1:{unused_port}"


def test_settings_meant_for_other_programs_do_not_reach_it(
    livekit_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1:1")
    monkeypatch.setenv("LIVEKIT_KEYS", "somebody: else")
    monkeypatch.setenv("LIVEKIT_PORT", "1")
    with start_livekit_server(livekit_binary, report=print, log=tmp_path / "log", port=0) as server:
        assert answers(server)


def test_a_program_that_ends_at_once_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    broken = program(tmp_path / "broken", "echo one; echo no such flag: --dev >&2", "exit 2")
    log = tmp_path / "log"
    with pytest.raises(LiveKitServerFailed) as caught:
        start_livekit_server(broken, report=print, log=log, port=0)
    assert str(caught.value) == (
        f"The LiveKit server did not start: exit code 2. The end of its log, {log}:\n"
        "one\nno such flag: --dev"
    )

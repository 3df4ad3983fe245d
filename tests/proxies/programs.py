"""Real proxies in front of a gateway, with the configurations that the documentation recommends."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.programs import find_program
from tools.child_process import ChildProcess, last_lines

READY_SECONDS = 30.0
"""It takes a tenth of one."""

STOP_SECONDS = 10.0

DOCS = Path(__file__).parents[2] / "docs"

INGRESS = "../k8s/ingress.example.yaml"

Change = tuple[str, str]
"""Text of a configuration, and what is to be in its place."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """For 127.0.0.1, signed by itself."""

    certificate: Path
    key: Path


RunningProxy = Callable[..., AbstractAsyncContextManager[str]]
"""Its address; `(upstream, folder, certificate, *changes)`. Its logs are in the folder. Without a
certificate it speaks HTTP/1.1 in the clear."""


_AROUND_NGINX = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr notice;
{user}
events {{}}
http {{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    gzip on;
    gzip_proxied any;
    gzip_types text/event-stream;
    {site}
}}
"""
"""What Debian's own has around it, with files and without privileges of its own, and with a compression
that would take hold of events."""


@asynccontextmanager
async def running_nginx(
    upstream: str, folder: Path, certificate: Certificate | None, *changes: Change
) -> AsyncIterator[str]:
    port = _free_port()
    listen: list[Change] = [("listen 443 ssl http2;", f"listen 127.0.0.1:{port} ssl http2;")]
    if certificate is None:
        listen = [
            ("listen 443 ssl http2;", f"listen 127.0.0.1:{port};"),
            ("ssl_certificate /etc/nginx/gateway.crt;\n", ""),
            ("ssl_certificate_key /etc/nginx/gateway.key;\n", ""),
        ]
    else:
        listen += [
            ("/etc/nginx/gateway.crt", str(certificate.certificate)),
            ("/etc/nginx/gateway.key", str(certificate.key)),
        ]
    documented = _documented(
        "nginx.conf",
        *changes,
        *listen,
        ("127.0.0.1:8080", upstream.removeprefix("http://")),
        ("/var/log/nginx/", ""),
    )
    async with _running_nginx(documented, folder, port):
        yield _address(port, certificate)


@asynccontextmanager
async def running_ingress(
    upstream: str, folder: Path, certificate: Certificate | None, *changes: Change
) -> AsyncIterator[str]:
    """What F5's controller makes of k8s/ingress.example.yaml, as far as requests meet it: by the template
    of its Ingresses (5.4)."""
    port = _free_port()
    ingress = yaml.safe_load(_documented(INGRESS, *changes))
    told = {
        name.removeprefix("nginx.org/"): value
        for name, value in ingress["metadata"]["annotations"].items()
    }
    buffering = "off" if told["proxy-buffering"] == "false" else "on"
    tls = (
        ""
        if certificate is None
        else f"ssl_certificate {certificate.certificate}; ssl_certificate_key {certificate.key};"
    )
    configuration = f"""
        upstream gateway {{
            {told["lb-method"]};
            server {upstream.removeprefix("http://")} max_fails=1 fail_timeout=10s max_conns=0;
        }}
        server {{
            listen 127.0.0.1:{port} {"ssl http2" if certificate else ""};
            {tls}
            server_name {ingress["spec"]["rules"][0]["host"]};
            {told["server-snippets"]}
            location / {{
                proxy_http_version 1.1;
                {told["location-snippets"]}
                proxy_connect_timeout {told["proxy-connect-timeout"]};
                proxy_read_timeout {told["proxy-read-timeout"]};
                client_max_body_size {told["client-max-body-size"]};
                proxy_set_header Host $host;
                proxy_buffering {buffering};
                proxy_pass http://gateway;
            }}
        }}
    """
    async with _running_nginx(configuration, folder, port):
        yield _address(port, certificate)


@asynccontextmanager
async def running_haproxy(
    upstream: str, folder: Path, certificate: Certificate | None, *changes: Change
) -> AsyncIterator[str]:
    port = _free_port()
    if certificate is None:
        listen: list[Change] = [
            (
                ":443 ssl crt /etc/haproxy/gateway.pem alpn h2,http/1.1",
                f"127.0.0.1:{port}",
            )
        ]
    else:
        both = folder / "gateway.pem"
        both.write_text(certificate.certificate.read_text() + certificate.key.read_text())
        listen = [(":443", f"127.0.0.1:{port}"), ("/etc/haproxy/gateway.pem", str(both))]
    documented = _documented(
        "haproxy.cfg",
        *changes,
        *listen,
        ("127.0.0.1:8080", upstream.removeprefix("http://")),
        ("/etc/haproxy/come_back.http", str(DOCS / "come_back.http")),
        ("/dev/log local0", "stdout format raw local0"),
    )
    (folder / "haproxy.cfg").write_text(documented)
    command = ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]
    async with _running(command, {}, folder, port):
        yield _address(port, certificate)


@asynccontextmanager
async def running_caddy(
    upstream: str, folder: Path, certificate: Certificate | None, *changes: Change
) -> AsyncIterator[str]:
    port = _free_port()
    address = _address(port, certificate)
    tls = "" if certificate is None else f"tls {certificate.certificate} {certificate.key}"
    documented = _documented(
        "Caddyfile",
        *changes,
        ("gateway.example.com {", f"{address} {{\n\tbind 127.0.0.1\n\t{tls}"),
        ("127.0.0.1:8080", upstream.removeprefix("http://")),
    )
    # Port 80, the one that it is administered by and HTTP/3's, of UDP, may be another's.
    # By itself it would wait for event streams to end before it does.
    options = (
        "admin off",
        "auto_https disable_redirects",
        "grace_period 1s",
        "servers {\nprotocols h1 h2\n}",
    )
    (folder / "Caddyfile").write_text("\n".join(["{", *options, "}", documented]))
    command = [
        *("caddy", "run", "--adapter", "caddyfile"),
        *("--config", str(folder / "Caddyfile")),
    ]
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    async with _running(command, home, folder, port):
        yield address


PROXIES: Mapping[str, RunningProxy] = {
    "nginx": running_nginx,
    "nginx in Kubernetes": running_ingress,
    "haproxy": running_haproxy,
    "caddy": running_caddy,
}


def _documented(name: str, *changes: Change) -> str:
    """A file of DOCS with these changes, each of which must be one."""
    text = (DOCS / name).read_text()
    for old, new in changes:
        assert old in text, f"{name} has no {old!r}"
        text = text.replace(old, new)
    return text


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _address(port: int, certificate: Certificate | None) -> str:
    return f"http{'s' if certificate else ''}://127.0.0.1:{port}"


@asynccontextmanager
async def _running_nginx(configuration: str, folder: Path, port: int) -> AsyncIterator[None]:
    # Started by root it would take another user's name for its work, which may not write here.
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(_AROUND_NGINX.format(user=user, site=configuration))
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    async with _running(command, {}, folder, port):
        yield


@asynccontextmanager
async def _running(
    command: list[str], env: Mapping[str, str], folder: Path, port: int
) -> AsyncIterator[None]:
    """Its log is shown when the test fails."""
    program = find_program(command[0])
    assert program is not None
    log = folder / f"{command[0]}.log"
    with (
        log.open("ab") as output,
        ChildProcess([program, *command[1:]], env=env, output=output) as child,
    ):
        try:
            await asyncio.to_thread(child.wait_until, lambda: _accepts(port), within=READY_SECONDS)
            yield
            await asyncio.to_thread(child.stop, within=STOP_SECONDS)
        except BaseException:
            print(last_lines(log))
            raise


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

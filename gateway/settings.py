"""The gateway's settings: read once from the environment, then a value.

Below `__main__` nobody reads the environment. Everything that is wrong is reported at once, a line
each, so that a deployment is fixed in one go.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar
from urllib.parse import urlsplit

from gateway.event_log import LogBounds

T = TypeVar("T")

TOPIC_BYTES = 256
"""Longest topic, in bytes of UTF-8; ours, LiveKit sets none. Room and identity have the same."""

JSON_GROWTH = 8
"""Times that a text may grow as an event: JSON writes a control character in six bytes."""


class SettingsError(Exception):
    """One or more settings are missing or wrong; `problems` has a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _setting(name: str, read: Callable[[str], Any], default: Any = None, **more: Any) -> Any:
    return field(default=default, metadata={"name": name, "read": read}, **more)


def _required(name: str, read: Callable[[str], Any], **more: Any) -> Any:
    return field(metadata={"name": name, "read": read, "required": True}, **more)


def _text(value: str) -> str:
    return value


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("ws", "wss", "http", "https") or not parts.hostname:
        raise ValueError("must be the address of a LiveKit server, like ws://127.0.0.1:7880")
    if parts.port == 0:
        raise ValueError("must name a port other than 0")
    return value


def _port(value: str) -> int:
    return _number(value, int, 0, 65_535)


def _number(value: str, kind: Callable[[str], T], least: float, most: float) -> T:
    try:
        number = kind(value)
    except ValueError:
        number = None
    if number is None or not least <= number <= most:  # type: ignore[operator]
        raise ValueError(f"must be a number from {least:g} to {most:g}, not {value!r}")
    return number


def _count(least: int, most: int) -> Callable[[str], int]:
    return lambda value: _number(value, int, least, most)


def _seconds(least: float, most: float) -> Callable[[str], float]:
    return lambda value: _number(value, float, least, most)


def _switch(value: str) -> bool:
    try:
        return {"on": True, "off": False}[value.lower()]
    except KeyError:
        raise ValueError(f"must be on or off, not {value!r}") from None


def _names(value: str) -> tuple[str, ...]:
    return tuple(name for name in (part.strip() for part in value.split(",")) if name)


def _topics(value: str) -> tuple[str, ...]:
    topics = _names(value)
    for topic in topics:
        if len(topic.encode("utf-8", "surrogateescape")) > TOPIC_BYTES:
            raise ValueError(f"a topic has at most {TOPIC_BYTES} bytes")
    return topics


def _origins(value: str) -> tuple[str, ...]:
    origins = _names(value)
    for origin in origins:
        parts = urlsplit(origin)
        plain = parts.scheme in ("http", "https") and parts.hostname and not parts.path
        if origin != "*" and not plain:
            raise ValueError(f"must be origins like https://app.example, or *, not {origin!r}")
    return origins


def _level(value: str) -> str:
    if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError(f"must be debug, info, warning or error, not {value!r}")
    return value.upper()


@dataclass(frozen=True, slots=True)
class Settings:
    livekit_url: str = _required("LIVEKIT_URL", _url)
    livekit_api_key: str = _required("LIVEKIT_API_KEY", _text)
    livekit_api_secret: str = _required("LIVEKIT_API_SECRET", _text, repr=False)
    host: str = _setting("GATEWAY_HOST", _text, "127.0.0.1")
    port: int = _setting("GATEWAY_PORT", _port, 8080)
    metrics_port: int | None = _setting("GATEWAY_METRICS_PORT", _count(1, 65_535))
    """None: /metrics is on the port that everything is on."""
    topics: tuple[str, ...] = _setting("GATEWAY_TOPICS", _topics, ("lk.chat", "lk.transcription"))
    """Received and logged in every room that we are in, also before anybody subscribes."""
    cors_origins: tuple[str, ...] = _setting("GATEWAY_CORS_ORIGINS", _origins, ())
    page: bool = _setting("GATEWAY_PAGE", _switch, True)
    log_level: str = _setting("GATEWAY_LOG_LEVEL", _level, "INFO")
    livekit_log: bool = _setting("GATEWAY_LIVEKIT_LOG", _switch, False)
    """The native library passes its debug log on with its warnings, and that is costly: some 10 ms of
    processor time a second for each connection that is new."""
    max_text_bytes: int = _setting(
        "GATEWAY_MAX_TEXT_BYTES", _count(1, 256 * 1024 * 1024), 1024 * 1024
    )
    """A whole text is held in memory several times on its way; longer ones are streamed."""
    max_stream_bytes: int = _setting(
        "GATEWAY_MAX_STREAM_BYTES", _count(1, 1024**4), 1024 * 1024 * 1024
    )
    body_idle_timeout: float = _setting("GATEWAY_BODY_IDLE_TIMEOUT", _seconds(0.1, 86_400), 60.0)
    """An agent may think for half a minute between two pieces; a dead sender must not hold a stream open for ever."""
    stream_idle_timeout: float = _setting("GATEWAY_STREAM_IDLE_TIMEOUT", _seconds(1, 86_400), 600.0)
    """An agent may think for minutes; what a sender forgot to close must not stay open for ever."""
    heartbeat: float = _setting("GATEWAY_HEARTBEAT", _seconds(0.1, 3600), 15.0)
    """Below the 30 to 60 s after which proxies and mobile networks drop a silent connection."""
    write_timeout: float = _setting("GATEWAY_WRITE_TIMEOUT", _seconds(0.1, 3600), 30.0)
    """A phone in a tunnel comes back within it; a reader that stands still is dropped after it."""
    max_age: float = _setting("GATEWAY_MAX_AGE", _seconds(0.1, 7 * 86_400), 600.0)
    """Seconds that an event stream lasts, less up to a fifth: then its client comes back, to a replica that has
    come meanwhile too. What comes back costs a request, so less would cost more than it spreads."""
    linger: float = _setting("GATEWAY_LINGER", _seconds(0, 3600), 30.0)
    """A page reload or the next POST finds the participant still in the room."""
    drain_timeout: float = _setting("GATEWAY_DRAIN_TIMEOUT", _seconds(0.1, 3600), 5.0)
    """Well within the 30 s that Kubernetes gives a pod."""
    max_connections: int = _setting("GATEWAY_MAX_CONNECTIONS", _count(1, 100_000), 300)
    """What one process carries (docs: figures); each costs 1 to 2.5 MB and a WebRTC session."""
    max_rooms_of_identity: int = _setting("GATEWAY_MAX_ROOMS_OF_IDENTITY", _count(1, 100_000), 100)
    """So that one who gets tokens for any room does not take all connections."""
    max_open_streams: int = _setting("GATEWAY_MAX_OPEN_STREAMS", _count(1, 1_000_000), 4_000)
    """Texts that are being streamed into rooms, and uploads; each may hold 64 KiB of a line or of a socket."""
    max_open_streams_of_identity: int = _setting(
        "GATEWAY_MAX_OPEN_STREAMS_OF_IDENTITY", _count(1, 1_000_000), 500
    )
    """As many as a gateway takes from one sender on the other side."""
    upload_idle_timeout: float = _setting(
        "GATEWAY_UPLOAD_IDLE_TIMEOUT", _seconds(0.1, 86_400), 300.0
    )
    """A phone that lost its network is back within it; until then readers see the text as unfinished."""
    max_event_streams: int = _setting("GATEWAY_MAX_EVENT_STREAMS", _count(1, 1_000_000), 10_000)
    max_event_streams_of_identity: int = _setting(
        "GATEWAY_MAX_EVENT_STREAMS_OF_IDENTITY", _count(1, 1_000_000), 1_000
    )
    """One that is read by nobody holds 64 KiB and more: one identity is not to have them all."""
    log_events: int = _setting("GATEWAY_LOG_EVENTS", _count(1, 10_000_000), LogBounds().events)
    log_bytes: int = _setting("GATEWAY_LOG_BYTES", _count(1024, 1024**4), LogBounds().bytes)
    log_age: float = _setting("GATEWAY_LOG_AGE", _seconds(1, 7 * 86_400), LogBounds().age)

    log_total_bytes: int = _setting("GATEWAY_LOG_TOTAL_BYTES", _count(1024, 1024**4), 512 * 1024**2)
    """Beside the connections' own gigabyte at most; with fewer than 64 that are full, each has all of its own."""

    @property
    def log_bounds(self) -> LogBounds:
        return LogBounds(self.log_events, self.log_bytes, self.log_age)


SETTING_NAMES = tuple(setting.metadata["name"] for setting in fields(Settings))


def read_settings(environ: Mapping[str, str]) -> Settings:
    """The settings in `environ`, or SettingsError with everything that is wrong with them.

    An empty variable counts as absent. A `GATEWAY_` variable that we do not know is wrong: a typo
    fails loudly instead of leaving a default in force.
    """
    values: dict[str, Any] = {}
    problems = _unknown(environ)
    for setting in fields(Settings):
        name = setting.metadata["name"]
        raw = environ.get(name, "")
        if not raw:
            if "required" in setting.metadata:
                problems.append(f"{name} is missing; {_HELP[name]}")
            continue
        try:
            values[setting.name] = setting.metadata["read"](raw)
        except ValueError as error:
            problems.append(f"{name} {error}.")
    if problems:
        raise SettingsError(problems)
    settings = Settings(**values)
    least = settings.max_text_bytes * JSON_GROWTH
    if settings.log_bytes < least:
        raise SettingsError(
            [
                f"GATEWAY_LOG_BYTES must be at least {least}, {JSON_GROWTH} times"
                " GATEWAY_MAX_TEXT_BYTES: the log must hold a whole text until it is read."
            ]
        )
    return settings


def _unknown(environ: Mapping[str, str]) -> list[str]:
    unknown = sorted(
        name for name in environ if name.startswith("GATEWAY_") and name not in SETTING_NAMES
    )
    problems = [
        f"{name} is not a setting of the gateway; the README has them all." for name in unknown
    ]
    if unknown and "KUBERNETES_SERVICE_HOST" in environ:
        problems.append(
            "Kubernetes itself sets such names for a Service called gateway;"
            " 'enableServiceLinks: false' in the pod's spec keeps them out."
        )
    return problems


_HELP = {
    "LIVEKIT_URL": "set it to your LiveKit server, like ws://127.0.0.1:7880.",
    "LIVEKIT_API_KEY": "set it to an API key of your LiveKit server (devkey with --dev).",
    "LIVEKIT_API_SECRET": "set it to the secret of that API key (secret with --dev).",
}

"""Settings are read once, and everything that is wrong is said, a line each."""

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from gateway.settings import SETTING_NAMES, Settings, SettingsError, read_settings

REQUIRED = {
    "LIVEKIT_URL": "ws://127.0.0.1:7880",
    "LIVEKIT_API_KEY": "devkey",
    "LIVEKIT_API_SECRET": "hush",
}


def test_the_defaults() -> None:
    assert read_settings(REQUIRED) == Settings("ws://127.0.0.1:7880", "devkey", "hush")


def test_an_empty_variable_counts_as_absent() -> None:
    assert read_settings({**REQUIRED, "GATEWAY_PORT": ""}).port == 8080


def test_every_setting_can_be_set() -> None:
    settings = read_settings(
        {
            **REQUIRED,
            "GATEWAY_HOST": "::1",
            "GATEWAY_PORT": "9000",
            "GATEWAY_METRICS_PORT": "9001",
            "GATEWAY_TOPICS": "a, b",
            "GATEWAY_CORS_ORIGINS": "https://app.example,http://localhost:3000",
            "GATEWAY_PAGE": "off",
            "GATEWAY_LOG_LEVEL": "debug",
            "GATEWAY_LIVEKIT_LOG": "on",
            "GATEWAY_HEARTBEAT": "2.5",
        }
    )

    assert settings.topics == ("a", "b")
    assert settings.cors_origins == ("https://app.example", "http://localhost:3000")
    assert (settings.host, settings.port, settings.page) == ("::1", 9000, False)
    assert settings.metrics_port == 9001
    assert (settings.log_level, settings.livekit_log) == ("DEBUG", True)
    assert settings.heartbeat == 2.5


def test_the_secret_is_not_shown() -> None:
    assert "hush" not in repr(read_settings(REQUIRED))


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        read_settings(REQUIRED).port = 1  # type: ignore[misc]


def test_everything_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        read_settings({"GATEWAY_PORT": "http"})

    assert [line.split(" ")[0] for line in error.value.problems] == [
        "LIVEKIT_URL",
        "LIVEKIT_API_KEY",
        "LIVEKIT_API_SECRET",
        "GATEWAY_PORT",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIVEKIT_URL", "127.0.0.1:7880"),
        ("LIVEKIT_URL", "ftp://host"),
        ("LIVEKIT_URL", "ws://"),
        ("LIVEKIT_URL", "ws://host:99999"),
        ("GATEWAY_PORT", "tcp://10.0.0.1:8080"),
        ("GATEWAY_PORT", "-1"),
        ("GATEWAY_PORT", "65536"),
        ("GATEWAY_METRICS_PORT", "0"),
        ("GATEWAY_HEARTBEAT", "nan"),
        ("GATEWAY_HEARTBEAT", "0"),
        ("GATEWAY_LINGER", "inf"),
        ("GATEWAY_MAX_TEXT_BYTES", "1MiB"),
        ("GATEWAY_TOPICS", "t" * 257),
        ("GATEWAY_CORS_ORIGINS", "app.example"),
        ("GATEWAY_CORS_ORIGINS", "https://app.example/path"),
        ("GATEWAY_PAGE", "maybe"),
        ("GATEWAY_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_is_one_clear_line(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_settings({**REQUIRED, name: value})

    (line,) = error.value.problems
    assert line.startswith(f"{name} ")
    assert "\n" not in line


def test_a_typo_in_a_name_fails_loudly() -> None:
    with pytest.raises(SettingsError, match="GATEWAY_PROT is not a setting"):
        read_settings({**REQUIRED, "GATEWAY_PROT": "1"})


def test_the_log_must_hold_a_whole_text() -> None:
    with pytest.raises(SettingsError, match="GATEWAY_LOG_BYTES must be at least 16777216"):
        read_settings({**REQUIRED, "GATEWAY_MAX_TEXT_BYTES": "2097152"})


def test_kubernetes_service_links_are_explained() -> None:
    environ = {
        **REQUIRED,
        "GATEWAY_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    }

    with pytest.raises(SettingsError, match="enableServiceLinks: false"):
        read_settings(environ)


def test_the_readme_has_every_setting() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()

    assert set(re.findall(r"^\| `((?:GATEWAY|LIVEKIT)_[A-Z_]+)`", readme, re.M)) == set(
        SETTING_NAMES
    )

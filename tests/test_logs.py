"""What must never be in a log."""

import io
import logging

import pytest

from gateway.logs import RedactingFormatter
from tests.conftest import Serve
from tests.running_gateway import RunningGateway


def test_tokens_are_taken_out_of_messages_and_tracebacks() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logger = logging.getLogger("tests.redaction")
    logger.addHandler(handler)
    token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJib2IifQ.c2lnbmF0dXJl"

    logger.error("401 - invalid token: %s, error", token)
    logger.error("GET /rtc?access_token=%s&x=1", "opaque-token")
    try:
        raise ValueError(token)
    except ValueError:
        logger.exception("failed")

    assert token not in written.getvalue()
    assert "opaque-token" not in written.getvalue()
    assert "401 - invalid token: [token], error\n" in written.getvalue()
    assert "GET /rtc?access_token=[token]&x=1\n" in written.getvalue()


def test_nobody_elses_names_make_a_line_of_their_own() -> None:
    record = logging.LogRecord(
        "livekit", logging.WARNING, "", 0, "Stream '%s' is open", ("a\nb\r",), None
    )

    assert RedactingFormatter("%(message)s").format(record) == "Stream 'a\\nb\\r' is open"


async def test_neither_texts_nor_tokens_are_logged(
    serve: Serve, room: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gateway")
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        await gateway.post(room, "carol", "the text", **{"attr.a": "the attribute"})
        await bob.until("stream.closed")
        await _refused(gateway, room)

    assert f"POST /rooms/{room}/text 200" in caplog.text
    for secret in ("the text", "the attribute", "the refused", "eyJ"):
        assert secret not in caplog.text


async def _refused(gateway: RunningGateway, room: str) -> None:
    answer = await gateway.post(room, "carol", b"the refused \xff", topic="x")
    assert answer.status_code == 400

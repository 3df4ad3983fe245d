"""`openapi.yaml` against the code, both ways: what is missing in either fails here."""

import ast
import asyncio
import base64
import dataclasses
import gzip
import hashlib
import inspect
import json
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Set
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import httpx
import jwt
import pytest
import yaml
from livekit import api
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway import __version__, errors, events, idempotency, server, session
from gateway.agent_session import helper
from gateway.agent_session.decoding import DECODERS
from gateway.errors import GatewayError
from gateway.event_log import EventLog, LogBounds
from gateway.hub import Hub
from gateway.outgoing import Sent
from gateway.rooms import base, incoming
from gateway.rooms.memory import MemoryRooms
from gateway.rooms.native import dispatch, room as native_room
from gateway.settings import Settings
from gateway.transcripts import TRANSCRIPTION_TOPIC
from gateway.turn import MOST_KEPT, Outcome
from gateway.web import (
    body,
    forms,
    history,
    options,
    problems,
    sse,
    transcript,
    turn_options,
    turns,
    upload,
    writing,
)
from gateway.web.app import REQUEST_HEADERS, RESPONSE_HEADERS, make_app, make_routes
from gateway.web.event_stream import Replay
from gateway.web.parameters import Presence
from tests.agent_schemas import problems_of
from tests.bare_agent import bare_agent
from tests.running_gateway import running

ROOT = Path(__file__).parents[1]

DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "openapi.yaml").read_text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]

EVENT_STREAM: dict[str, Any] = DOCUMENT["components"]["responses"]["EventStream"]

SETTINGS = Settings("ws://localhost", "devkey", "secret")

PAGE_ASSETS = {"/", "/page.css", "/page.js"}
"""For people: a page and its parts, which no program calls and whose form promises nothing."""

METHODS = ("get", "head", "post", "put", "patch", "delete", "options")

TEXT = "/rooms/{room}/text"
UPLOAD = "/rooms/{room}/uploads/{upload_id}"
TOPICS = "/rooms/{room}/topics"
TOPIC = "/rooms/{room}/topics/{topic}"
EVENTS = "/rooms/{room}/topics/{topic}/events"
ROOM_EVENTS = "/rooms/{room}/events"
AGENT = "/rooms/{room}/agent"
TURNS = "/rooms/{room}/agent/turns"
AGENT_EVENTS = "/rooms/{room}/agent/events"
STREAMS = "/rooms/{room}/topics/{topic}/streams"
STREAM = "/rooms/{room}/streams/{stream_id}"
PARTICIPANTS = "/rooms/{room}/participants"
PARTICIPANT = "/rooms/{room}/participants/{identity}"
WEBHOOK = "/webhooks/livekit"

OF_ROOMS = [
    (method, path)
    for path in DOCUMENT["paths"]
    for method in METHODS
    if path.startswith("/rooms/") and method in DOCUMENT["paths"][path] and method != "options"
]
"""Every documented operation that needs a credential."""

JOINING = [
    ("post", TEXT),
    ("get", EVENTS),
    ("get", ROOM_EVENTS),
    ("get", AGENT_EVENTS),
    ("get", AGENT),
    ("post", TURNS),
    ("get", PARTICIPANTS),
    ("get", STREAMS),
    ("get", STREAM),
]
"""Those that make the caller a participant."""

BEGUN = {"Location", "Upload-Offset", "Upload-Complete"}
"""Headers of the answer to a text that was begun as an upload, and of no other."""

OF_SOME = BEGUN | {"Upload-Limit", "Accept-Encoding"}
"""Headers of some of the problems that an answer may be."""

MESSAGE = "message"

MADE = {MESSAGE, transcript.PARTIAL, transcript.FINAL}
"""The events that are made of a stream's, and have no class."""

AGENTS_TYPES = {f"agent.{name}" for name in {*DECODERS, *helper.ONLY}}
"""Of the events that are agents' own, which have no class each."""

MAX_ROOMS = 2

POSITION = "9ed8f7aeaa2ac3bb-1"

ROUTING_CODES = {
    "not_found",
    "method_not_allowed",
    "http_error",
    "malformed_request",
    "head_too_large",
}
"""Answers to what reaches no route, so no operation can list them."""


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = _hub()
    yield hub
    await hub.drain()


@pytest.fixture
async def client(hub: Hub) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(hub, SETTINGS)

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        # Where the server would add its own; event streams, which need that, are read over a socket.
        await app({**scope, "state": {}}, receive, send)

    transport = httpx.ASGITransport(served, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://gateway", headers=_bearer("r")
    ) as client:
        yield client


def _bearer(room: str, **grants: Any) -> dict[str, str]:
    """Alice's, for that room."""
    token = (
        api.AccessToken("devkey", "secret")
        .with_identity("alice")
        .with_grants(api.VideoGrants(room_join=True, room=room, **grants))
    )
    return {"Authorization": f"Bearer {token.to_jwt()}"}


ADMIN = {"headers": _bearer("r", room_admin=True)}

PLAIN = {"Content-Type": "text/plain"}
LINES = {"Content-Type": "application/x-ndjson"}
LINES_WANTED = {"Accept": "application/x-ndjson"}
TOPICS_ASKED: dict[str, Any] = {"params": {"topic": ["lk.chat", "later"]}}
GZIP = {"Content-Encoding": "gzip"}
BROTLI = {"Content-Encoding": "br"}
KEYLESS = {"Idempotency-Key": ""}
LONGER = {"Upload-Complete": "?1", "Upload-Length": "2"}


def _part(offset: int, content: bytes, *, complete: bool) -> dict[str, Any]:
    headers = {
        "Content-Type": body.PARTIAL,
        "Upload-Offset": str(offset),
        "Upload-Complete": "?1" if complete else "?0",
    }
    return {"content": content, "headers": headers}


def _webhook(body: bytes) -> dict[str, Any]:
    """A request that LiveKit has signed."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    claims = {"iss": "devkey", "exp": time.time() + 3600, "sha256": digest}
    token = jwt.encode(claims, "secret", algorithm="HS256")
    return {"content": body, "headers": {"Authorization": token}}


def _hub() -> Hub:
    return Hub(
        MemoryRooms(),
        lambda topics: EventLog(sse.encode, LogBounds(), topics),
        topics=SETTINGS.topics,
        linger=60,
        max_connections=10,
        max_rooms_of_identity=MAX_ROOMS,
        drain_spread=1.0,
    )


# The document itself


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)


def test_its_version_is_the_gateways() -> None:
    assert DOCUMENT["info"]["version"] == __version__


def test_every_example_is_an_instance_of_its_schema() -> None:
    checked = 0
    for media_type, content in _contents(DOCUMENT):
        if media_type == "text/event-stream":
            continue
        for example in _examples(content):
            _check(example, content["schema"])
            checked += 1
    assert checked > 15


def test_all_paths_of_event_streams_are_answered_alike() -> None:
    for method in ("get", "head"):
        answered = _operations(EVENTS)[method]["responses"]
        for path in (ROOM_EVENTS, AGENT_EVENTS):
            assert _operations(path)[method]["responses"] == answered


def test_every_event_in_an_example_stream_is_an_instance_of_its_schema() -> None:
    contents = (EVENT_STREAM["content"], _operations(TURNS)["post"]["responses"]["200"]["content"])

    seen = [
        event
        for content in contents
        for stream in _examples(content[forms.EVENT_STREAM])
        for event in re.findall(r"^event: (.*)\ndata: (.*)$", stream, re.MULTILINE)
    ]

    for name, data in seen:
        assert json.loads(data)["type"] == name
        _check(json.loads(data), {"$ref": "#/components/schemas/Event"})
    assert {name for name, _ in seen} - AGENTS_TYPES == {*_event_classes(), *MADE}


def test_an_example_stream_begins_as_a_stream_does() -> None:
    examples = EVENT_STREAM["content"][forms.EVENT_STREAM]["examples"]

    assert _OPENING.match(examples["text"]["value"])


_OPENING = re.compile(re.sub(r"[0-9]+", "[0-9]+", sse.opening().decode()))
"""Its wait is random."""


def test_the_lines_of_the_example_are_the_events_of_the_example_stream() -> None:
    text = EVENT_STREAM["content"][forms.EVENT_STREAM]["examples"]["text"]["value"]
    lines = _examples(EVENT_STREAM["content"][forms.JSON_LINES])[0].splitlines()

    for line in lines:
        _check(json.loads(line), {"$ref": "#/components/schemas/EventLine"})
    blocks = _OPENING.sub("", text).strip().split("\n\n")
    assert lines == list(map(_as_line, blocks))


def _as_line(block: str) -> str:
    """What a block of Server-Sent Events is as a line of JSON."""
    fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
    data = fields.get("data", '{"type":"gateway.position"}')
    return f'{{"id":"{fields["id"]}",{data[1:]}' if "id" in fields else data


# Routes and methods


def test_every_route_is_documented_and_every_documented_path_is_routed() -> None:
    routed: dict[str, set[str]] = defaultdict(set)
    for route in _routes():
        routed[_path(route)] |= route.methods or set()

    assert routed.keys() - DOCUMENT["paths"].keys() == PAGE_ASSETS
    assert DOCUMENT["paths"].keys() <= routed.keys()
    for path in DOCUMENT["paths"]:
        documented = {method.upper() for method in _operations(path)}
        # HEAD is GET without its body, and documented where it does less than that.
        undocumented = routed[path] - documented
        assert undocumented == (
            {"HEAD"} if "GET" in documented and "HEAD" not in documented else set()
        ), path
        assert documented <= routed[path], path


def test_the_documented_heads_are_those_that_do_other_than_a_get() -> None:
    """One never joins; where the other is, there is nothing to get."""
    heads = [path for path in DOCUMENT["paths"] if "head" in _operations(path)]

    assert heads == [UPLOAD, ROOM_EVENTS, AGENT_EVENTS, EVENTS]


def test_every_path_parameter_is_documented() -> None:
    for route in _routes():
        if _path(route) not in PAGE_ASSETS:
            documented = {
                each["name"] for each in _parameters(_path(route)) if each["in"] == "path"
            }
            assert documented == set(route.param_convertors), route.path


def test_rooms_need_a_credential_and_nothing_else_does() -> None:
    assert DOCUMENT["security"] == [{"bearer": []}, {"accessToken": []}]
    for path in DOCUMENT["paths"]:
        for method, operation in _operations(path).items():
            needed = path.startswith("/rooms/") and method != "options"
            assert operation.get("security") == (None if needed else []), path


# What a request may carry


@pytest.mark.parametrize(("method", "path"), OF_ROOMS)
async def test_the_query_parameters_are_those_that_the_path_knows(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    # Another says what a HEAD may carry: it has the text that a HEAD's answer lacks.
    told = ("PATCH" if path == UPLOAD else "GET") if method == "head" else method
    answer = await client.request(told, _filled(path) + "?unheard-of=1")
    known = answer.json()["detail"].partition("this path knows ")[2].rstrip(".").split(", ")
    assert answer.status_code == 400
    if method != "head":
        _check_answer(answer, _operations(path)[method]["responses"]["400"])

    documented = {
        parameter["name"]
        for parameter in _parameters(path, method)
        if parameter["in"] == "query" and parameter.get("explode") is not True
    }
    prefixed = {
        parameter["schema"]["propertyNames"]["pattern"]
        for parameter in _parameters(path, method)
        if parameter.get("explode") is True
    }

    credential = DOCUMENT["components"]["securitySchemes"]["accessToken"]["name"]
    assert documented | {credential} == {name for name in known if not name.endswith("NAME")}
    assert prefixed == {r"^attr\..+" for name in known if name == "attr.NAME"}


async def test_the_json_members_are_those_that_a_text_may_have(client: httpx.AsyncClient) -> None:
    answer = await client.post("/rooms/r/text", json={"text": "", "unheard-of": 1})
    known = answer.json()["detail"].partition("beside 'text' there are ")[2].rstrip(".").split(", ")

    schema = SCHEMAS["Text"]
    assert schema["properties"].keys() == {"text", *known}
    assert schema["additionalProperties"] is False
    without_text = await client.post("/rooms/r/text", json={"topic": "t"})
    assert (without_text.status_code, schema["required"]) == (400, ["text"])


def test_the_replays_and_views_are_those_that_the_code_has() -> None:
    for path in (EVENTS, ROOM_EVENTS, AGENT_EVENTS):
        assert _query_schema("get", path, "replay")["enum"] == [str(each) for each in Replay]
        assert _query_schema("get", path, "view")["enum"] == [str(each) for each in forms.View]


def test_transcripts_are_bounded_as_documented() -> None:
    described = _query(EVENTS, "get", "view")["description"]
    assert f"more than {transcript.PARTIAL_CHARACTERS:,} characters" in described
    words = SCHEMAS["TranscriptPartial"]["properties"]["words"]["description"]
    assert f"more than {transcript.TIMED_BYTES:,} bytes" in words


def test_the_types_of_event_streams_are_those_of_the_code() -> None:
    types = list(dict.fromkeys(media_type for media_type, _ in forms.FORMS))

    for method in ("get", "head"):
        answer = _resolved(_operations(EVENTS)[method]["responses"]["200"])
        assert list(answer["content"]) == types


def test_the_presences_are_those_that_the_code_has() -> None:
    assert SCHEMAS["Presence"]["enum"] == [str(each) for each in Presence]
    for method, path in JOINING:
        if path == TURNS:
            continue  # who asks is there to be answered
        schema = _query_schema(method, path, "presence")
        assert schema["$ref"] == "#/components/schemas/Presence"
        assert schema["default"] == Presence.JOIN


def test_the_wait_for_an_agent_is_bounded_as_documented() -> None:
    schema = SCHEMAS["AgentTimeout"]

    assert (schema["minimum"], schema["maximum"]) == (0, options.MAX_AGENT_TIMEOUT)
    assert (
        f"{options.AGENT_TIMEOUT:g} for a text"
        in _query(TEXT, "post", "agent_timeout")["description"]
    )


def _header(path: str, method: str, name: str) -> dict[str, Any]:
    return next(
        each for each in _parameters(path, method) if (each["in"], each["name"]) == ("header", name)
    )


def _query_schema(method: str, path: str, name: str) -> dict[str, Any]:
    schema: dict[str, Any] = _query(path, method, name)["schema"]
    return schema


def _query(path: str, method: str, name: str) -> dict[str, Any]:
    return next(each for each in _parameters(path, method) if each["name"] == name)


async def test_the_body_types_are_those_that_are_taken(client: httpx.AsyncClient) -> None:
    answer = await client.post("/rooms/r/text", content=b"", headers={"Content-Type": "image/png"})

    content = DOCUMENT["paths"][TEXT]["post"]["requestBody"]["content"]
    assert answer.status_code == 415
    taken = re.findall(r"[a-z]+/[a-z-]+", answer.json()["detail"].partition("Send")[2])
    assert set(content) == {*taken, body.PARTIAL}
    assert list(DOCUMENT["paths"][UPLOAD]["patch"]["requestBody"]["content"]) == [body.PARTIAL]


async def test_the_codings_are_those_that_are_taken(client: httpx.AsyncClient) -> None:
    for coding in _header(TEXT, "post", "Content-Encoding")["schema"]["enum"]:
        content = b"Hello" if coding == "identity" else gzip.compress(b"Hello")
        headers = {"Content-Type": "text/plain", "Content-Encoding": coding}
        answer = await client.post(_filled(TEXT), content=content, headers=headers)
        assert (answer.status_code, answer.json()["size"]) == (200, 5)


def test_the_headers_are_those_that_pages_of_other_origins_may_send_and_read() -> None:
    sent, read = set(), set()
    for path in DOCUMENT["paths"]:
        for method, operation in _operations(path).items():
            sent |= {each["name"] for each in _parameters(path, method) if each["in"] == "header"}
            for response in operation["responses"].values():
                read |= _resolved(response).get("headers", {}).keys()

    # Not in parameters, as OpenAPI has it; or the browser's own affair.
    assert sent - {"Expect"} | {"Authorization", "Content-Type"} == set(REQUEST_HEADERS)
    assert read - {"Accept-Encoding", "Allow", "Cache-Control", "X-Accel-Buffering"} == set(
        RESPONSE_HEADERS
    )


@pytest.mark.parametrize(
    "line",
    [
        "a piece",
        "",
        {"text": "a piece"},
        {"close": {}},
        {"close": {"attributes": {}}},
        {"close": {"attributes": {"a": "b"}}},
        1,
        None,
        [],
        {},
        {"text": 1},
        {"text": "a", "topic": "b"},
        {"text": "a", "close": {}},
        {"close": None},
        {"close": {"reason": "b"}},
        {"close": {"attributes": {"a": 1}}},
        {"close": {"attributes": {"": "b"}}},
    ],
    ids=json.dumps,
)
def test_a_line_is_taken_if_it_is_an_instance_of_its_schema(line: Any) -> None:
    schema = {**SCHEMAS["TextLine"], "components": DOCUMENT["components"]}

    assert OAS31Validator(schema).is_valid(line) == _is_taken(json.dumps(line))


def test_every_line_of_an_example_is_taken() -> None:
    content = DOCUMENT["paths"][TEXT]["post"]["requestBody"]["content"][body.LINES]

    for example in _examples(content):
        assert _is_taken(example)
        for line in example.splitlines():
            _check(json.loads(line), {"$ref": "#/components/schemas/TextLine"})


def _is_taken(lines: str) -> bool:
    decoder = body.LinesDecoder()
    try:
        list(decoder.feed(lines.encode()))
        list(decoder.finish())
    except GatewayError:
        return False
    return True


def test_the_bounds_of_a_page_of_texts_are_those_of_the_code() -> None:
    limit = _query(STREAMS, "get", "limit")

    assert (limit["schema"]["maximum"], limit["schema"]["default"]) == (history.MOST, history.LIMIT)
    assert f"{history.PAGE_BYTES / 2**20:g} MiB" in limit["description"]


async def test_a_text_that_is_not_told_is_answered_as_documented(
    client: httpx.AsyncClient, hub: Hub
) -> None:
    await client.get(_filled(STREAM))
    (log,) = hub.logs
    answers = []
    for identity, topic in (("bob", "lk.agent.session"), ("carol", "lk.chat")):
        log.append(events.StreamOpened("note-1", topic, identity, 1))
        answers.append(await client.get(_filled(STREAM)))

    told = [(answer.status_code, answer.json()["code"]) for answer in answers]
    assert told == [(403, "topic_reserved"), (409, "stream_ambiguous")]
    for answer in answers:
        _check_answer(answer, _operations(STREAM)["get"]["responses"][str(answer.status_code)])


async def test_the_key_of_the_example_is_one(client: httpx.AsyncClient) -> None:
    key = _header(TEXT, "post", "Idempotency-Key")["example"]
    request: dict[str, Any] = {"json": {"text": "Hello"}, "headers": {"Idempotency-Key": key}}

    first = await client.post(_filled(TEXT), **request)
    again = await client.post(_filled(TEXT), **request)

    assert (first.status_code, again.content) == (200, first.content)


def test_the_bounds_of_a_text_are_those_of_the_code() -> None:
    sending, parts = _operations(TEXT)["post"], _operations(UPLOAD)
    line = f"{body.LINE_BYTES:,} bytes"

    assert SCHEMAS["Version"]["maximum"] == options.MAX_VERSION
    assert SCHEMAS["Operation"]["enum"] == list(get_args(base.Operation))
    for described, bounds in (
        (
            sending,
            [
                line,
                f"{SETTINGS.max_text_bytes / 2**20:g} MiB",
                f"{SETTINGS.max_stream_bytes / 2**30:g} GiB",
                f"expand to {body.FREE_EXPANSION / 2**20:g} MiB",
                f"{body.MOST_EXPANSION} times",
                f"{body.MEMBERS:,} members",
                f"{SETTINGS.body_idle_timeout:g} s (a setting)",
                f"{idempotency.REMEMBERED:g} s",
                f"{idempotency.MAX_KEYS_OF_IDENTITY:,}",
            ],
        ),
        (sending["responses"]["408"], [f"{SETTINGS.body_idle_timeout:g} s, a setting"]),
        (sending["responses"]["413"], [line, f"{options.HEADER_BYTES:,} bytes"]),
        (
            sending["responses"]["429"],
            [
                f"{SETTINGS.max_rooms_of_identity}, a setting",
                f"{SETTINGS.max_open_streams_of_identity}, a setting",
                f"{SETTINGS.max_open_streams:,}, a setting",
            ],
        ),
        (
            parts["head"],
            [
                f"{SETTINGS.upload_idle_timeout:g} s (a setting)",
                f"remembered for {upload.REMEMBERED:g} s",
            ],
        ),
        (parts["patch"]["responses"]["408"], [f"{SETTINGS.body_idle_timeout:g} s, a setting"]),
        (parts["patch"]["responses"]["413"], [line]),
    ):
        text = " ".join(described["description"].split())
        for bound in bounds:
            assert bound in text


# What is answered


def test_the_members_of_an_accepted_text_are_those_of_the_code() -> None:
    names = list(Sent._fields)

    assert list(SCHEMAS["Sent"]["properties"]) == names
    assert SCHEMAS["Sent"]["required"] == names


def test_the_members_of_a_participant_are_those_of_the_code() -> None:
    fields = dataclasses.fields(base.Participant)
    names = [field.name for field in fields if field.name != "hidden"]

    assert list(SCHEMAS["Participant"]["properties"]) == names
    assert SCHEMAS["Participant"]["required"] == names


async def test_a_request_is_answered_as_documented(client: httpx.AsyncClient) -> None:
    webhook = _webhook(b'{"event": "room_started", "room": {"name": "r"}}')
    answered = set()
    for method, path, request, status in (
        ("get", TOPICS, {}, 200),
        ("put", TOPIC, ADMIN, 204),
        ("put", TOPIC.replace("{topic}", "later"), ADMIN, 201),
        ("delete", TOPIC.replace("{topic}", "later"), ADMIN, 204),
        ("get", EVENTS, {"headers": {"Last-Event-ID": POSITION}}, 204),
        ("head", EVENTS, {}, 200),
        ("head", EVENTS, {"headers": LINES_WANTED}, 200),
        ("get", ROOM_EVENTS, TOPICS_ASKED | {"headers": {"Last-Event-ID": POSITION}}, 204),
        ("head", ROOM_EVENTS, TOPICS_ASKED, 200),
        ("get", AGENT_EVENTS, {"headers": {"Last-Event-ID": POSITION}}, 204),
        ("head", AGENT_EVENTS, {}, 200),
        ("get", AGENT, {}, 200),
        ("get", PARTICIPANTS, {}, 200),
        ("get", PARTICIPANTS, ADMIN | {"params": {"presence": "none"}}, 200),
        ("post", TEXT, {"json": {"text": "Hello", "to": "bob", "attributes": {"a": "b"}}}, 200),
        ("post", TEXT, {"json": {"text": "Hello", "presence": "none", "agent_timeout": 0}}, 200),
        ("post", TEXT, {"content": b"Hello", "headers": {"Content-Type": "text/plain"}}, 200),
        ("post", TEXT, {"json": {"text": "Hello", "stream_id": "note-1"}}, 200),
        ("get", STREAMS, {}, 200),
        ("get", STREAM, {}, 200),
        ("options", TEXT, {}, 204),
        ("delete", PARTICIPANT, {}, 204),
        ("post", WEBHOOK, webhook, 204),
        ("get", "/readyz", {}, 200),
        ("get", "/livez", {}, 200),
        ("get", "/metrics", {}, 200),
        ("get", "/openapi.yaml", {}, 200),
    ):
        answer = await client.request(method, _filled(path), **request)

        assert answer.status_code == status, (method, path, answer.text)
        operation = _operations(_documented(path))[method]
        lacking = BEGUN if (method, path) == ("post", TEXT) else set()
        _check_answer(answer, operation["responses"][str(status)], but_for=lacking)
        assert not any(name in answer.headers for name in lacking)
        answered.add((method, _documented(path)))

    operations = {(method, path) for path in DOCUMENT["paths"] for method in _operations(path)}
    assert answered == {each for each in operations if each[1] not in (UPLOAD, TURNS)}


@pytest.mark.parametrize("accept", [forms.EVENT_STREAM, body.JSON])
async def test_a_turn_is_answered_as_documented(accept: str) -> None:
    async with running(MemoryRooms(), SETTINGS) as gateway, bare_agent(gateway, "r") as agent:
        await agent.show("listening")
        asking = asyncio.create_task(
            gateway.client.post(
                _filled(TURNS),
                json={"text": "Hello", "agent": "agent", "agent_timeout": 1, "timeout": 5},
                headers=gateway.bearer("alice", "r") | {"Accept": accept},
            )
        )
        await agent.answers("Hello", "Good day", tool="greet")
        answer = await asking

    documented = _operations(TURNS)["post"]["responses"]["200"]
    assert answer.headers["content-type"].partition(";")[0] == accept
    if accept == body.JSON:
        _check_answer(answer, documented)
        assert answer.json()["outcome"] == "completed"
        assert answer.json()["tool_calls"]
    else:
        assert answer.headers["cache-control"] == "no-store, no-transform"
        seen = [json.loads(data) for data in re.findall(r"^data: (.*)$", answer.text, re.M)]
        for each in seen:
            _check(each, {"$ref": "#/components/schemas/Event"})
        assert [seen[0]["type"], seen[-1]["type"]] == ["agent.turn_started", "agent.turn_completed"]


def test_the_words_and_bounds_of_turns_are_those_of_the_code() -> None:
    time_limit = SCHEMAS["TurnTimeout"]
    described = _operations(TURNS)["post"]["description"]

    assert (time_limit["default"], time_limit["maximum"]) == (
        turn_options.TIMEOUT,
        turn_options.MAX_TIMEOUT,
    )
    assert SCHEMAS["WhileRunning"]["enum"] == [str(each) for each in turn_options.WhileRunning]
    assert SCHEMAS["TurnOutcome"]["enum"] == [
        str(each) for each in Outcome if each is not Outcome.NOT_ACCEPTED
    ]
    assert _query(TURNS, "post", "agent_timeout")["schema"]["default"] == options.AGENT_TIMEOUT
    assert f"{turns.MAX_KEYS_OF_IDENTITY} keys" in described
    assert f"{MOST_KEPT:,} characters" in SCHEMAS["Turn"]["properties"]["truncated"]["description"]
    assert list(SCHEMAS["Turn"]["properties"]) == _members(events.AgentTurnCompleted)[1:]
    for content in ("text/plain", "application/json"):
        assert content in _operations(TURNS)["post"]["requestBody"]["content"]


async def test_an_upload_is_answered_as_documented(client: httpx.AsyncClient) -> None:
    beginnings = _operations(TEXT)["post"]["responses"]
    begun = await client.post(_filled(TEXT), headers={"Upload-Complete": "?0"})
    other = await client.post(_filled(TEXT), content=b"Hel", headers={"Upload-Complete": "?0"})
    whole = await client.post(_filled(TEXT), content=b"Hello", headers={"Upload-Complete": "?1"})
    for answer, status in ((begun, 201), (other, 201), (whole, 200)):
        assert answer.status_code == status
        _check_answer(answer, beginnings[str(status)])

    answered = set()
    for method, at, request, status, lacking in (
        ("head", begun, {}, 204, {"Upload-Length"}),
        ("patch", begun, _part(0, b"Hel", complete=False), 201, set()),
        ("patch", begun, _part(3, b"lo", complete=True), 200, set()),
        ("head", begun, {}, 204, {"Upload-Limit"}),
        ("delete", other, {}, 204, set()),
    ):
        answer = await client.request(method, at.headers["Location"], **request)

        assert answer.status_code == status, (method, answer.text)
        responses = _operations(UPLOAD)[method]["responses"]
        _check_answer(answer, responses[str(status)], but_for=lacking)
        assert not any(name in answer.headers for name in lacking)
        answered.add(method)

    assert answered == _operations(UPLOAD).keys()


async def test_an_upload_of_json_is_begun_without_a_word_of_its_text(
    client: httpx.AsyncClient,
) -> None:
    headers = {"Upload-Complete": "?0", "Content-Type": "application/json"}
    begun = await client.post(_filled(TEXT), content=b'{"text": ', headers=headers)

    assert (begun.status_code, begun.content) == (201, b"")
    documented = _operations(TEXT)["post"]["responses"]["201"]
    _check_answer(begun, {**documented, "content": {"": {"schema": {"maxLength": 0}}}})


async def test_event_streams_are_answered_as_documented() -> None:
    """Whole, as they are once the gateway goes away; and with what happened until then."""
    asked: list[tuple[str, dict[str, Any]]] = [
        (EVENTS, {"params": {"participants": "1"}}),
        (EVENTS, {"params": {"view": "messages"}}),
        (EVENTS, {"params": {"view": "transcript"}}),
        (ROOM_EVENTS, TOPICS_ASKED),
        (AGENT_EVENTS, {"params": {"presence": "join"}}),
        (ROOM_EVENTS, {"params": {"topic": "lk.chat", "view": "messages"}}),
    ]
    async with running(MemoryRooms(), SETTINGS) as gateway, AsyncExitStack() as stack:
        bearer = gateway.bearer("alice", "r")
        answers = [
            await stack.enter_async_context(
                gateway.client.stream("GET", _filled(path), headers=bearer | accept, **request)
            )
            for path, request in asked
            for accept in ({}, LINES_WANTED)
        ]
        await gateway.post("r", "alice", "Hello")
        await gateway.hub.drain()
        for answer in answers:
            await answer.aread()

    for number, answer in enumerate(answers):
        path, request = asked[number // 2]
        _check_answer(answer, _operations(path)["get"]["responses"]["200"])
        if number % 2:
            seen = [json.loads(line) for line in answer.text.splitlines()]
            schema = "EventLine"
        else:
            seen = [json.loads(data) for data in re.findall(r"^data: (.*)$", answer.text, re.M)]
            schema = "Event"
        for each in seen:
            _check(each, {"$ref": f"#/components/schemas/{schema}"})
        streams = ["stream.opened", "stream.chunk", "stream.closed"]
        if path == AGENT_EVENTS:
            streams = []
        assert [each["type"] for each in seen if each["type"] != "gateway.position"] == [
            "gateway.opened",
            *([MESSAGE] if request["params"].get("view") == "messages" else streams),
            "gateway.closing",
        ]


@pytest.mark.parametrize(
    ("method", "path", "request_", "status", "code"),
    [
        ("post", TEXT, {"json": []}, 400, "invalid_parameter"),
        ("post", TEXT, {"json": {"text": "", "topic": "lk.x"}}, 403, "topic_reserved"),
        ("post", TEXT, {"json": {"text": "", "presence": "none"}}, 403, "presence_required"),
        ("post", TEXT, ADMIN | {"json": {"text": "", "presence": "none"}}, 404, "room_not_open"),
        (
            "post",
            TEXT,
            {"json": {"text": "", "attributes": {"a": "b" * 15_000}}},
            413,
            "header_too_large",
        ),
        ("post", TEXT, {"content": b"{", "headers": LINES}, 400, "invalid_line"),
        ("post", TEXT, {"content": b"", "headers": PLAIN | KEYLESS}, 400, "invalid_parameter"),
        ("post", TEXT, {"content": b"x", "headers": PLAIN | GZIP}, 400, "invalid_encoding"),
        ("post", TEXT, {"content": b"x", "headers": LONGER}, 400, "length_mismatch"),
        ("post", TEXT, {"content": b""}, 415, "unsupported_media_type"),
        ("post", TEXT, {"content": b"", "headers": PLAIN | BROTLI}, 415, "unsupported_encoding"),
        ("post", TEXT, {"json": {}, "headers": {"Expect": "more"}}, 417, "expectation_failed"),
        ("patch", UPLOAD, {}, 404, "upload_not_found"),
        ("delete", UPLOAD, {}, 404, "upload_not_found"),
        ("post", TEXT, {"json": {"text": "", "agent_timeout": 0.01}}, 504, "agent_unavailable"),
        ("post", TURNS, {"json": {"text": " "}}, 400, "invalid_parameter"),
        ("post", TURNS, {"json": {"text": "", "agent_timeout": 0}}, 400, "invalid_parameter"),
        ("post", TURNS, {"json": {"text": "a", "timeout": 0}}, 400, "invalid_parameter"),
        ("post", TURNS, {"content": b"a", "headers": PLAIN | GZIP}, 400, "invalid_encoding"),
        ("post", TURNS, {"content": b"a", "headers": LINES}, 415, "unsupported_media_type"),
        ("post", TURNS, {"content": b"", "headers": PLAIN | BROTLI}, 415, "unsupported_encoding"),
        ("post", TURNS, {"json": {"text": "a"}, "headers": LINES_WANTED}, 406, "not_acceptable"),
        ("post", TURNS, {"json": {"text": "a", "agent_timeout": 0}}, 504, "agent_unavailable"),
        ("get", EVENTS, {"params": {"replay": "some"}}, 400, "invalid_parameter"),
        ("get", EVENTS, {"headers": {"Accept": "text/html"}}, 406, "not_acceptable"),
        ("get", ROOM_EVENTS, {}, 400, "invalid_parameter"),
        ("get", ROOM_EVENTS, {"params": {"topic": "lk.x"}}, 403, "topic_reserved"),
        ("get", EVENTS, {"params": {"presence": "none"}}, 403, "presence_required"),
        ("get", EVENTS.replace("{topic}", "lk.x"), {}, 403, "topic_reserved"),
        ("put", TOPIC, {}, 403, "missing_grant"),
        ("put", TOPIC.replace("{topic}", "lk.x"), ADMIN, 403, "topic_reserved"),
        ("delete", TOPIC, {}, 403, "missing_grant"),
        ("delete", TOPIC, ADMIN, 409, "topic_fixed"),
        ("delete", TOPIC.replace("{topic}", "later"), ADMIN, 404, "topic_not_registered"),
        ("get", STREAMS, {"params": {"limit": "0"}}, 400, "invalid_parameter"),
        ("get", STREAMS, {"params": {"before": POSITION}}, 400, "invalid_parameter"),
        ("get", STREAMS, {"params": {"presence": "none"}}, 403, "presence_required"),
        ("get", STREAMS.replace("{topic}", "lk.x"), {}, 403, "topic_reserved"),
        ("get", STREAM, {}, 404, "stream_not_found"),
        ("get", STREAM, {"params": {"presence": "none"}}, 403, "presence_required"),
        ("get", PARTICIPANTS, {"params": {"presence": "none"}}, 403, "presence_required"),
        ("delete", PARTICIPANT.replace("{identity}", "bob"), {}, 403, "identity_mismatch"),
        ("delete", PARTICIPANT, {}, 404, "not_in_room"),
        ("post", WEBHOOK, _webhook(b"[]"), 400, "invalid_parameter"),
        ("post", WEBHOOK, {"content": b"{}"}, 401, "webhook_invalid"),
        ("post", WEBHOOK, _webhook(b" " * 1_048_577), 413, "body_too_large"),
    ],
)
async def test_a_refused_request_is_answered_as_documented(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    request_: dict[str, Any],
    status: int,
    code: str,
) -> None:
    answer = await client.request(method, _filled(path), **request_)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    responses = _operations(_documented(path))[method]["responses"]
    _check_answer(answer, responses[str(status)], but_for=OF_SOME)


@pytest.mark.parametrize(
    ("method", "request_", "status", "code"),
    [
        ("patch", {}, 415, "unsupported_media_type"),
        ("patch", {"headers": {"Content-Type": body.PARTIAL}}, 400, "invalid_parameter"),
        ("patch", _part(0, b"\xff", complete=False), 400, "invalid_text"),
        ("patch", _part(0, b"Hello!", complete=False), 400, "length_mismatch"),
        ("patch", _part(0, b"Hell", complete=True), 400, "length_mismatch"),
        ("patch", _part(1, b"Hello", complete=True), 409, "offset_mismatch"),
        ("delete", {"headers": {"Upload-Complete": "?1"}}, 400, "invalid_parameter"),
    ],
)
async def test_a_part_that_is_refused_is_answered_as_documented(
    client: httpx.AsyncClient, method: str, request_: dict[str, Any], status: int, code: str
) -> None:
    headers = {"Upload-Complete": "?0", "Upload-Length": "5"}
    begun = await client.post(_filled(TEXT), headers=headers)

    answer = await client.request(method, begun.headers["Location"], **request_)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    _check_answer(answer, _operations(UPLOAD)[method]["responses"][str(status)])
    assert answer.headers["Upload-Complete"] == "?0"
    assert answer.headers["Upload-Offset"].isdigit()


async def test_what_is_done_to_an_upload_that_is_over_is_answered_as_documented(
    client: httpx.AsyncClient,
) -> None:
    whole = await client.post(_filled(TEXT), content=b"Hello", headers={"Upload-Complete": "?1"})
    other = await client.post(_filled(TEXT), headers={"Upload-Complete": "?0"})
    await client.request("patch", other.headers["Location"], **_part(0, b"\xff", complete=True))

    for at, method, request, status, code in (
        (whole, "patch", _part(5, b"!", complete=True), 400, "upload_complete"),
        (whole, "delete", {}, 400, "upload_complete"),
        (other, "patch", _part(0, b"!", complete=True), 404, "upload_ended"),
        (other, "delete", {}, 404, "upload_ended"),
    ):
        answer = await client.request(method, at.headers["Location"], **request)

        assert (answer.status_code, answer.json()["code"]) == (status, code)
        _check_answer(answer, _operations(UPLOAD)[method]["responses"][str(status)])


async def test_a_conflict_of_texts_is_answered_as_documented(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    await client.post(_filled(TEXT), params={"stream_id": "s"}, headers={"Upload-Complete": "?0"})
    await client.post(_filled(TEXT), json={"text": "one"}, headers=key)

    in_use = await client.post(_filled(TEXT), json={"text": "one", "stream_id": "s"})
    reused = await client.post(_filled(TEXT), json={"text": "two"}, headers=key)

    for answer, status, code in (
        (in_use, 409, "stream_id_in_use"),
        (reused, 422, "idempotency_key_reused"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        _check_answer(answer, _operations(TEXT)["post"]["responses"][str(status)])


@pytest.mark.parametrize(("method", "path"), [each for each in OF_ROOMS if each[0] != "head"])
@pytest.mark.parametrize(
    ("headers", "status"), [({"Authorization": "Basic x"}, 401), (_bearer("another"), 403)]
)
async def test_a_credential_that_does_not_do_is_answered_as_documented(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = await client.request(method, _filled(path), headers=headers)

    assert answer.status_code == status
    _check_answer(answer, _operations(path)[method]["responses"][str(status)])


@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        *((method, path, {}) for method, path in JOINING),
        ("put", TOPIC.replace("{topic}", "later"), ADMIN),
        ("get", "/readyz", {}),
    ],
)
async def test_draining_is_answered_as_documented(
    client: httpx.AsyncClient, hub: Hub, method: str, path: str, more: dict[str, Any]
) -> None:
    await hub.drain()

    answer = await client.request(method, _filled(path), **_least(method, path), **more)

    _check_answer(answer, _operations(_documented(path))[method]["responses"]["503"])


@pytest.mark.parametrize(("method", "path"), JOINING)
async def test_an_identity_in_too_many_rooms_is_answered_as_documented(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    for number in range(MAX_ROOMS):
        other = f"other-{number}"
        await client.get(f"/rooms/{other}/participants", headers=_bearer(other))

    answer = await client.request(method, _filled(path), **_least(method, path))

    assert answer.json()["code"] == "too_many_rooms"
    _check_answer(answer, _operations(path)[method]["responses"]["429"])


async def test_a_reconnecting_stream_is_put_off_as_in_the_example(
    client: httpx.AsyncClient, hub: Hub
) -> None:
    examples = EVENT_STREAM["content"][forms.EVENT_STREAM]["examples"]
    headers = {"Last-Event-ID": POSITION}

    unseen = {"presence": "none"}
    absent = await client.get(_filled(EVENTS), headers=headers, params=unseen)
    await hub.drain()
    later = await client.get(_filled(EVENTS), headers=headers)

    for answer, example in ((absent, "absent"), (later, "later")):
        _check_answer(answer, EVENT_STREAM)
        assert answer.text == examples[example]["value"]


def _least(method: str, path: str) -> dict[str, Any]:
    """What a request needs to be one."""
    if path == ROOM_EVENTS:
        return TOPICS_ASKED
    return {"json": {"text": "Hello" if path == TURNS else ""}} if method == "post" else {}


# Errors


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    documented = SCHEMAS["Problem"]["properties"]["code"]["enum"]

    assert len(documented) == len(set(documented))
    assert set(documented) == {kind.code for kind in _leaves(GatewayError)} | _literal_codes()


def test_only_errors_without_heirs_are_raised() -> None:
    """So the codes of the others, which name groups, never reach a client."""
    groups = {kind.__name__ for kind in _tree(GatewayError) if kind.__subclasses__()}

    called = {
        node.func.id
        for path in (ROOT / "gateway").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }

    assert len(groups) == 7
    assert not groups & called


def test_a_code_stands_at_the_status_that_it_is_answered_with() -> None:
    status_of = {kind.code: int(problems.status_of(kind)) for kind in _leaves(GatewayError)}
    status_of["internal_error"] = 500

    documented = set()
    for path in DOCUMENT["paths"]:
        for operation in _operations(path).values():
            for status, response in operation["responses"].items():
                for code in _codes(_resolved(response)):
                    assert status_of[code] == int(status), code
                    documented.add(code)

    assert documented == status_of.keys()
    assert set(SCHEMAS["Problem"]["properties"]["code"]["enum"]) - documented == ROUTING_CODES


def test_challenges_and_waits_are_documented_where_they_are_sent() -> None:
    for path in DOCUMENT["paths"]:
        for operation in _operations(path).values():
            for status, response in operation["responses"].items():
                headers = _resolved(response).get("headers", {})
                assert ("WWW-Authenticate" in headers) == (status in ("401", "403")), path
                assert ("Retry-After" in headers) == (status in ("429", "503", "504")), path


async def test_an_error_is_answered_as_documented_wherever_its_code_stands() -> None:
    answers = {kind.code: await _answer(kind) for kind in _leaves(GatewayError)}

    for path in DOCUMENT["paths"]:
        for operation in _operations(path).values():
            for response in operation["responses"].values():
                for code in _codes(_resolved(response)):
                    if code != "internal_error":
                        _check_answer(answers[code], response, but_for=OF_SOME)
    coded = [code for code, answer in answers.items() if "Accept-Encoding" in answer.headers]
    assert coded == ["unsupported_encoding"]


def test_the_waits_are_those_of_the_code() -> None:
    waits = {kind.retry_after for kind in _leaves(errors.Unavailable)}

    assert set(DOCUMENT["components"]["headers"]["RetryAfter"]["schema"]["enum"]) == waits


async def test_the_members_of_a_problem_are_those_of_the_code() -> None:
    answers = [(await _answer(kind)).json() for kind in _leaves(GatewayError)]
    first = list(answers[0])
    more = dict.fromkeys(name for answer in answers for name in answer if name not in first)

    schema = SCHEMAS["Problem"]
    assert list(schema["properties"]) == [*first, *more]
    assert schema["required"] == first
    assert set(schema["properties"]["type"]["enum"]) == {answer["type"] for answer in answers}


async def _answer(kind: type[GatewayError]) -> httpx.Response:
    error = kind(1, 2) if kind is errors.OffsetMismatch else kind("What happened.")
    response = problems.on_gateway_error(error)
    content = bytes(response.body)
    return httpx.Response(response.status_code, headers=response.headers, content=content)


# Events


def test_every_event_is_documented_and_every_documented_event_exists() -> None:
    assert set(_documented_events()) == {*_event_classes(), *MADE, *AGENTS_TYPES}
    assert {each["$ref"] for each in SCHEMAS["Event"]["oneOf"]} == set(
        SCHEMAS["Event"]["discriminator"]["mapping"].values()
    )
    assert set(SCHEMAS["AgentEvent"]["properties"]["type"]["enum"]) == AGENTS_TYPES
    for type_, schema in _documented_events().items():
        assert schema["properties"]["type"]["const"] == type_


@pytest.mark.parametrize(
    ("type_", "members"),
    [
        ("agent.agent_state_changed", {"old_state": None, "new_state": 1}),
        ("agent.agent_state_changed", {"old_state": None}),
        ("agent.conversation_item_added", {"item": {"type": "message", "content": "text"}}),
        ("agent.conversation_item_added", {"item": {"type": "agent_handoff", "id": 1}}),
        ("agent.function_tools_executed", {"zipped": [{"function_call": None}]}),
        ("agent.error", {"error": {"recoverable": False}, "source": None}),
    ],
)
def test_the_schemas_of_agents_events_refuse_what_they_do_not_say(
    type_: str, members: dict[str, Any]
) -> None:
    """Those that tests receive are held against them (tests/agent_schemas.py)."""
    told = {"participant_identity": "agent", "created_at": 1.5, "created_at_is": "sent"}
    assert problems_of({"type": type_, **told, **members})


def test_the_union_of_events_has_every_class_with_a_type() -> None:
    assert set(_event_classes().values()) == {
        each for each in _classes(events) if isinstance(getattr(each, "type", None), str)
    }


def test_the_members_of_every_event_are_those_of_the_code() -> None:
    made = _members_of_made()
    assert made.keys() == MADE
    for type_ in {*_event_classes(), *MADE}:
        schema = _documented_events()[type_]
        names = made[type_] if type_ in MADE else _members(_event_classes()[type_])
        assert list(schema["properties"]) == names, type_
        assert schema["required"] == names, type_


def test_the_words_in_events_are_those_of_the_code() -> None:
    presence = events.GatewayOpened.__annotations__["presence"]
    for schema, member, words in (
        ("GatewayGap", "reason", [*events.GapReason]),
        ("GatewayClosing", "reason", [*events.ClosingReason]),
        ("GatewayOpened", "presence", [*get_args(presence)]),
        ("StreamOpened", "operation", [*native_room._OPERATIONS.values()]),
    ):
        assert SCHEMAS[schema]["properties"][member]["enum"] == [str(word) for word in words]


def test_the_reasons_of_an_incomplete_text_are_those_of_the_code() -> None:
    described = SCHEMAS["StreamClosed"]["properties"]["reason"]["description"]

    codes = (
        errors.BodyIdle,
        errors.BodyTooLarge,
        errors.HeaderTooLarge,
        errors.InvalidText,
        errors.InvalidLine,
        errors.InvalidEncoding,
        errors.LengthMismatch,
        errors.NotPermitted,
        errors.TokenExpired,
        errors.LiveKitUnavailable,
    )
    assert set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", described)) - {"code"} == {
        writing.CLIENT_DISCONNECTED,
        *(kind.code for kind in codes),
        upload.IDLE,
        upload.EXPIRED,
        upload.CANCELLED,
        events.ClosingReason.DRAIN,
        events.ClosingReason.LEFT,
        *base.LostReason,
        session.HANDOVER,
        writing.INTERRUPTED,
        dispatch.ABANDONED,
        incoming.SENDER_DISCONNECTED,
        incoming.IDLE,
        base.TOO_MANY_OPEN,
    }


@pytest.mark.parametrize(
    "event",
    [
        events.StreamOpened("id", "lk.chat", "alice", 1),
        events.StreamOpened(
            "id", "lk.chat", "alice", 1, 2, "text/plain", {"a": "b"}, ("bob",), "other", ("f",)
        ),
        events.StreamChunk("id", "lk.chat", "alice", 0, "text"),
        events.StreamClosed("id", "lk.chat", "alice", True, None, {}, 4, 1),
        events.StreamClosed("id", "lk.chat", "alice", False, "body_idle", {"a": "b"}, 0, 0),
        events.ParticipantConnected("agent-1", "agent", "Ava", {"lk.agent.state": "listening"}),
        events.ParticipantDisconnected("bob", "client_initiated"),
        events.ParticipantDisconnected("bob", None),
        events.ParticipantAttributesChanged("bob", {"mood": ""}, {}),
        *(kind() for kind in get_args(events.RoomEvent)),
        events.GatewayOpened("participant", "alice", POSITION),
        events.GatewayOpened("observer", "alice", POSITION),
        *(events.GatewayGap(reason, POSITION, POSITION) for reason in events.GapReason),
        *map(events.closing, events.ClosingReason),
    ],
)
def test_an_event_on_the_wire_is_an_instance_of_its_schema(event: events.Event) -> None:
    name, data = re.findall(r"event: (.*)\ndata: (.*)\n", sse.encode(event).decode())[0]

    _check(json.loads(data), {"$ref": "#/components/schemas/Event"})
    _check(json.loads(data), _documented_events()[name])


# Reading the document


def _operations(path: str) -> dict[str, Any]:
    return {name: item for name, item in DOCUMENT["paths"][path].items() if name in METHODS}


def _parameters(path: str, method: str | None = None) -> list[dict[str, Any]]:
    own = DOCUMENT["paths"][path].get(method, {}) if method else {}
    both = [*DOCUMENT["paths"][path].get("parameters", []), *own.get("parameters", [])]
    return [_resolved(each) for each in both]


def _resolved(item: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in item:
        return item
    found: Any = DOCUMENT
    for name in item["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    assert isinstance(found, dict)
    return found


def _codes(response: dict[str, Any]) -> list[str]:
    content = response.get("content", {}).get("application/problem+json")
    return content["schema"]["allOf"][1]["properties"]["code"]["enum"] if content else []


def _contents(item: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every media type object in the document."""
    if isinstance(item, dict):
        for name, value in item.items():
            if name == "content":  # of an answer, or a member of some event
                yield from ((each, about) for each, about in value.items() if "/" in each)
            yield from _contents(value)
    elif isinstance(item, list):
        for value in item:
            yield from _contents(value)


def _examples(content: dict[str, Any]) -> list[Any]:
    if "example" in content:
        return [content["example"]]
    return [each["value"] for each in content.get("examples", {}).values()]


def _check(value: Any, schema: dict[str, Any]) -> None:
    OAS31Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def _check_answer(
    answer: httpx.Response, documented: dict[str, Any], but_for: Set[str] = frozenset()
) -> None:
    response = _resolved(documented)
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    content = response.get("content", {"": {"schema": {"maxLength": 0}}})
    assert media_type in content
    _check(answer.json() if _is_json(media_type) else answer.text, content[media_type]["schema"])
    for name, header in response.get("headers", {}).items():
        if name in but_for:
            continue
        schema = _resolved(header)["schema"]
        value = answer.headers[name]
        _check(int(value) if schema["type"] == "integer" else value, schema)


def _is_json(media_type: str) -> bool:
    return media_type.endswith(("/json", "+json"))


def _documented_events() -> dict[str, dict[str, Any]]:
    mapping = SCHEMAS["Event"]["discriminator"]["mapping"]
    return {type_: _resolved({"$ref": ref}) for type_, ref in mapping.items()}


# Reading the code


def _routes() -> list[Route]:
    return make_routes(_hub(), SETTINGS)


def _path(route: Route) -> str:
    return re.sub(r":\w+}", "}", route.path)


def _filled(path: str) -> str:
    room, topic = path.replace("{room}", "r"), "lk.chat"
    upload_id = "4nVmtA5XiYnTHqJbW0yTcw"
    filled = room.replace("{topic}", topic).replace("{identity}", "alice")
    return filled.replace("{upload_id}", upload_id).replace("{stream_id}", "note-1")


def _documented(path: str) -> str:
    """The path as the document has it, of one that is filled in part."""
    paths: list[str] = list(DOCUMENT["paths"])
    return next(each for each in paths if re.fullmatch(_pattern(each), path))


def _pattern(path: str) -> str:
    return re.sub(r"\{\w+}", "[^/]+", path)


def _tree(kind: type[GatewayError]) -> Iterator[Any]:
    yield kind
    for heir in kind.__subclasses__():
        yield from _tree(heir)


def _leaves(kind: type[GatewayError]) -> Iterator[Any]:
    return (each for each in _tree(kind) if not each.__subclasses__())


def _literal_codes() -> set[str]:
    """The codes that the two files themselves give, each behind a status."""
    return {
        node.args[1].value
        for module in (problems, server)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call)
        and len(node.args) > 2
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[1].value, str)
        and re.fullmatch(r"[a-z]+(_[a-z]+)+", node.args[1].value)
    }


def _classes(module: ModuleType) -> list[type]:
    return [each for each in vars(module).values() if inspect.isclass(each)]


def _event_classes() -> dict[str, Any]:
    return {each.type: each for each in get_args(events.Event) if each is not events.AgentEvent}


def _members(event: Any) -> list[str]:
    return ["type", *(field.name.removesuffix("_") for field in dataclasses.fields(event))]


def _members_of_made() -> dict[str, list[str]]:
    """Of the events that are made of a stream's, by their types."""
    log = EventLog(sse.encode, LogBounds())
    for text in ("text", '{"text": "word", "end_time": 1.5}\n'):
        log.append(events.StreamOpened("id", TRANSCRIPTION_TOPIC, "alice", 1))
        log.append(events.StreamChunk("id", TRANSCRIPTION_TOPIC, "alice", 0, text))
        size = len(text)
        log.append(events.StreamClosed("id", TRANSCRIPTION_TOPIC, "alice", True, None, {}, size, 1))
    entries = log.read(0, [TRANSCRIPTION_TOPIC]).entries
    made: dict[str, list[str]] = {}
    for view, shown in (
        (forms.View.MESSAGES, entries),
        (forms.View.TRANSCRIPT, entries[:-1]),
        (forms.View.TRANSCRIPT, entries),
    ):
        for line in forms.FORMS[forms.JSON_LINES, view].entries(shown).splitlines():
            event = json.loads(line)
            _check(event, {"$ref": "#/components/schemas/EventLine"})
            made[event["type"]] = [name for name in event if name != "id"]
    return made

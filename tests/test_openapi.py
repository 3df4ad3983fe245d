"""`openapi.yaml` against the code, both ways: what is missing in either fails here."""

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import AsyncIterator, Iterator, Set
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import httpx
import pytest
import yaml
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from starlette.routing import Route

from gateway import __version__, errors, events, server
from gateway.errors import GatewayError
from gateway.event_log import EventLog, LogBounds
from gateway.hub import Hub, Sent
from gateway.rooms.memory import MemoryRooms
from gateway.rooms.native import room as native_room
from gateway.rooms.tokens import mint
from gateway.settings import Settings
from gateway.web import problems, sse
from gateway.web.app import make_app
from gateway.web.event_stream import Replay

ROOT = Path(__file__).parents[1]

DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "openapi.yaml").read_text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]

SETTINGS = Settings("ws://localhost", "devkey", "secret")

PAGE_ASSETS = {"/", "/page.css", "/page.js"}
"""For people: a page and its parts, which no program calls and whose form promises nothing."""

METHODS = ("get", "head", "post", "put", "patch", "delete")

TEXT = "/rooms/{room}/text"
EVENTS = "/rooms/{room}/topics/{topic}/events"

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
    token = mint("devkey", "secret", room="r", identity="alice", hidden=False, ttl=timedelta(1))
    transport = httpx.ASGITransport(make_app(hub, SETTINGS), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://gateway", headers=headers
    ) as client:
        yield client


def _hub() -> Hub:
    return Hub(
        MemoryRooms(),
        lambda: EventLog(sse.encode, LogBounds()),
        topics=SETTINGS.topics,
        linger=0,
        max_connections=10,
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


def test_every_event_in_an_example_stream_is_an_instance_of_its_schema() -> None:
    content = DOCUMENT["paths"][EVENTS]["get"]["responses"]["200"]["content"]["text/event-stream"]

    seen = [
        event
        for stream in _examples(content)
        for event in re.findall(r"^event: (.*)\ndata: (.*)$", stream, re.MULTILINE)
    ]

    for name, data in seen:
        assert json.loads(data)["type"] == name
        _check(json.loads(data), {"$ref": "#/components/schemas/Event"})
    assert {name for name, _ in seen} == set(_event_classes())


def test_an_example_stream_begins_as_a_stream_does() -> None:
    content = DOCUMENT["paths"][EVENTS]["get"]["responses"]["200"]["content"]["text/event-stream"]

    assert content["examples"]["text"]["value"].startswith(sse.OPENING.decode())


# Routes and methods


def test_every_route_is_documented_and_every_documented_path_is_routed() -> None:
    routed = {_path(route): route.methods or set() for route in _routes()}

    assert routed.keys() - DOCUMENT["paths"].keys() == PAGE_ASSETS
    assert DOCUMENT["paths"].keys() <= routed.keys()
    for path in DOCUMENT["paths"]:
        documented = {method.upper() for method in _operations(path)}
        # HEAD is GET without its body, and documented where it does less than that.
        undocumented = routed[path] - documented
        assert undocumented == (set() if path in (TEXT, EVENTS) else {"HEAD"}), path
        assert documented <= routed[path], path


def test_the_documented_head_is_the_one_that_never_joins() -> None:
    assert [path for path in DOCUMENT["paths"] if "head" in _operations(path)] == [EVENTS]


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
        for operation in _operations(path).values():
            assert operation.get("security") == (None if path.startswith("/rooms/") else []), path


# What a request may carry


@pytest.mark.parametrize(("path", "method"), [(TEXT, "post"), (EVENTS, "get"), (EVENTS, "head")])
async def test_the_query_parameters_are_those_that_the_path_knows(
    client: httpx.AsyncClient, path: str, method: str
) -> None:
    # A GET says what a HEAD may carry: it has the text that a HEAD's answer lacks.
    answer = await client.request(
        "GET" if method == "head" else method, _filled(path) + "?unheard-of=1"
    )
    known = answer.json()["detail"].partition("this path knows ")[2].rstrip(".").split(", ")

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


def test_the_replays_are_those_that_the_code_has() -> None:
    replay = next(each for each in _parameters(EVENTS) if each["name"] == "replay")

    assert replay["schema"]["enum"] == [str(each) for each in Replay]


async def test_the_body_types_are_those_that_are_taken(client: httpx.AsyncClient) -> None:
    answer = await client.post("/rooms/r/text", content=b"", headers={"Content-Type": "image/png"})

    content = DOCUMENT["paths"][TEXT]["post"]["requestBody"]["content"]
    assert answer.status_code == 415
    taken = re.findall(r"[a-z]+/[a-z]+", answer.json()["detail"].partition("(")[0])
    assert set(content) == set(taken)


# What is answered


def test_the_members_of_an_accepted_text_are_those_of_the_code() -> None:
    names = [field.name for field in dataclasses.fields(Sent)]

    assert list(SCHEMAS["Sent"]["properties"]) == names
    assert SCHEMAS["Sent"]["required"] == names


async def test_an_accepted_text_is_answered_as_documented(client: httpx.AsyncClient) -> None:
    for path, method, request in (
        (TEXT, "post", {"json": {"text": "Hello", "to": "bob", "attributes": {"a": "b"}}}),
        (TEXT, "post", {"content": b"Hello", "headers": {"Content-Type": "text/plain"}}),
        ("/readyz", "get", {}),
        ("/livez", "get", {}),
        ("/openapi.yaml", "get", {}),
        (EVENTS, "head", {}),
    ):
        answer = await client.request(method, _filled(path), **request)

        documented = _operations(path)[method]["responses"][str(answer.status_code)]
        _check_answer(answer, documented)


@pytest.mark.parametrize(
    ("method", "path", "request_", "status"),
    [
        ("post", TEXT, {"json": []}, 400),
        ("post", TEXT, {"json": {"text": ""}, "headers": {"Authorization": "Basic x"}}, 401),
        ("post", TEXT, {"json": {"text": "", "topic": "lk.agent.session"}}, 403),
        ("post", TEXT, {"json": {"text": "", "attributes": {"a": "b" * 15_000}}}, 413),
        ("post", TEXT, {"content": b""}, 415),
        ("get", EVENTS, {"params": {"replay": "some"}}, 400),
        ("get", EVENTS, {"headers": {"Authorization": "Basic x"}}, 401),
        ("get", EVENTS.replace("{topic}", "lk.agent.session"), {}, 403),
    ],
)
async def test_a_refused_request_is_answered_as_documented(
    client: httpx.AsyncClient, method: str, path: str, request_: dict[str, Any], status: int
) -> None:
    answer = await client.request(method, _filled(path), **request_)

    assert answer.status_code == status
    documented = TEXT if path == TEXT else EVENTS
    _check_answer(answer, _operations(documented)[method]["responses"][str(status)])


@pytest.mark.parametrize(("method", "path"), [("get", EVENTS), ("post", TEXT), ("get", "/readyz")])
async def test_draining_is_answered_as_documented(
    client: httpx.AsyncClient, hub: Hub, method: str, path: str
) -> None:
    await hub.drain()

    answer = await client.request(method, _filled(path), **_body(method))

    _check_answer(answer, _operations(path)[method]["responses"]["503"])


async def test_a_reconnecting_stream_is_put_off_as_in_the_example(
    client: httpx.AsyncClient, hub: Hub
) -> None:
    await hub.drain()

    answer = await client.get(_filled(EVENTS), headers={"Last-Event-ID": POSITION})

    documented = _operations(EVENTS)["get"]["responses"]["200"]
    _check_answer(answer, documented, but_for={"X-Accel-Buffering"})
    examples = documented["content"]["text/event-stream"]["examples"]
    assert answer.text == examples["later"]["value"]


def _body(method: str) -> dict[str, Any]:
    return {"json": {"text": ""}} if method == "post" else {}


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

    assert len(groups) == 5
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
                assert ("Retry-After" in headers) == (status in ("429", "503")), path


def test_the_waits_are_those_of_the_code() -> None:
    waits = {kind.retry_after for kind in _leaves(errors.Unavailable)}

    assert set(DOCUMENT["components"]["headers"]["RetryAfter"]["schema"]["enum"]) == waits


def test_the_members_of_a_problem_are_those_of_the_code() -> None:
    body = json.loads(bytes(problems.problem(404, "not_found", "").body))

    assert list(SCHEMAS["Problem"]["properties"]) == list(body)
    assert SCHEMAS["Problem"]["required"] == list(body)


# Events


def test_every_event_is_documented_and_every_documented_event_exists() -> None:
    assert set(_documented_events()) == set(_event_classes())
    assert {each["$ref"] for each in SCHEMAS["Event"]["oneOf"]} == set(
        SCHEMAS["Event"]["discriminator"]["mapping"].values()
    )
    for type_, schema in _documented_events().items():
        assert schema["properties"]["type"]["const"] == type_


def test_the_union_of_events_has_every_class_with_a_type() -> None:
    assert set(_event_classes().values()) == {
        each for each in _classes(events) if isinstance(getattr(each, "type", None), str)
    }


def test_the_members_of_every_event_are_those_of_the_code() -> None:
    for type_, schema in _documented_events().items():
        names = ["type", *_members(_event_classes()[type_])]
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
        events.GatewayOpened("participant", "alice", POSITION),
        events.GatewayGap(events.GapReason.UNKNOWN, POSITION, POSITION),
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
            if name == "content":
                yield from value.items()
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
    media_type = answer.headers["content-type"].partition(";")[0]
    content = response["content"]
    assert list(content) == [media_type]
    _check(
        answer.json() if media_type.endswith("json") else answer.text, content[media_type]["schema"]
    )
    for name, header in response.get("headers", {}).items():
        if name in but_for:
            continue
        schema = _resolved(header)["schema"]
        value = answer.headers[name]
        _check(int(value) if schema["type"] == "integer" else value, schema)


def _documented_events() -> dict[str, dict[str, Any]]:
    mapping = SCHEMAS["Event"]["discriminator"]["mapping"]
    return {type_: _resolved({"$ref": ref}) for type_, ref in mapping.items()}


# Reading the code


def _routes() -> list[Route]:
    routes = make_app(_hub(), SETTINGS).routes
    assert all(isinstance(route, Route) for route in routes)
    return [route for route in routes if isinstance(route, Route)]


def _path(route: Route) -> str:
    return re.sub(r":\w+}", "}", route.path)


def _filled(path: str) -> str:
    return path.replace("{room}", "r").replace("{topic}", "lk.chat")


def _tree(kind: type[GatewayError]) -> Iterator[Any]:
    yield kind
    for heir in kind.__subclasses__():
        yield from _tree(heir)


def _leaves(kind: type[GatewayError]) -> Iterator[Any]:
    return (each for each in _tree(kind) if not each.__subclasses__())


def _literal_codes() -> set[str]:
    """The codes that the two files themselves give: their words with an underscore and no blank."""
    return {
        node.value
        for module in (problems, server)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[a-z]+(_[a-z]+)+", node.value)
    }


def _classes(module: ModuleType) -> list[type]:
    return [each for each in vars(module).values() if inspect.isclass(each)]


def _event_classes() -> dict[str, Any]:
    return {each.type: each for each in get_args(events.Event)}


def _members(event: Any) -> list[str]:
    return [field.name.removesuffix("_") for field in dataclasses.fields(event)]

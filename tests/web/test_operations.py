"""Probes, the contract, the page, CORS, and what has no route."""

import pytest

from tests.conftest import Serve


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_answer(serve_memory: Serve, path: str) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.get(path)

    assert answer.status_code == 200


async def test_the_contract_is_served(serve_memory: Serve) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.get("/openapi.yaml")

    assert answer.status_code == 200
    assert answer.text.startswith("openapi: 3.1")


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css"])
async def test_the_page_is_served_and_can_be_turned_off(serve_memory: Serve, path: str) -> None:
    async with serve_memory() as gateway:
        on = await gateway.client.get(path)
    async with serve_memory(page=False) as gateway:
        off = await gateway.client.get(path)

    assert on.status_code == 200
    assert "script-src 'self'" in on.headers["content-security-policy"]
    assert off.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nothing", 404, None),
        ("GET", "/rooms/r/text/", 404, None),
        ("GET", "/rooms/r/text", 405, {"POST"}),
        ("POST", "/rooms/r/topics/t/events", 405, {"GET", "HEAD"}),
        ("DELETE", "/livez", 405, {"GET", "HEAD"}),
    ],
)
async def test_what_is_not_there_is_a_problem(
    serve_memory: Serve, method: str, path: str, status: int, allow: set[str] | None
) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.request(method, path)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == ("not_found" if status == 404 else "method_not_allowed")
    if allow is not None:
        assert set(answer.headers["allow"].split(", ")) == allow


async def test_pages_of_other_origins_may_call_only_if_listed(
    serve_memory: Serve, room: str
) -> None:
    origin = {"Origin": "https://app.example"}
    async with serve_memory(cors_origins=("https://app.example",)) as gateway:
        listed = await gateway.client.get(f"/rooms/{room}/topics/t/events", headers=origin)
        preflight = await gateway.client.options(
            f"/rooms/{room}/text",
            headers={
                **origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type",
            },
        )
    async with serve_memory() as gateway:
        unlisted = await gateway.client.get(f"/rooms/{room}/topics/t/events", headers=origin)

    assert listed.status_code == 401
    assert listed.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in listed.headers
    assert preflight.status_code == 200
    assert "access-control-allow-origin" not in unlisted.headers

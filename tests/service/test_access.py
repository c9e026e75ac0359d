"""Who may do what: keys, roles, roots, keys in the path, shares; on the whole application."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from stand_ins import NumpyExecutor

from wsisam_service.access import allowances
from wsisam_service.access.failures import Failures
from wsisam_service.access.gate import Gate
from wsisam_service.access.grants import Grant, strongest
from wsisam_service.access.identity import Identity, Role
from wsisam_service.access.keys import LOOK_S, KeyFile, KeyFileError, StoredKey, append_key, hash_of, new_key
from wsisam_service.access.rules import NEEDS, need_of
from wsisam_service.access.shares import Shares
from wsisam_service.app import create_app
from wsisam_service.errors import RateLimited, Unauthorized, UnknownSlide
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue

BOX = {"prompts": [{"box": [600, 400, 760, 520]}]}


@pytest.fixture
def two_roots(tmp_path: Path, slides: Path) -> Path:
    """A folder with the roots `colon` and `breast`, each with one slide called tissue.tif."""
    for root in ("colon", "breast"):
        (tmp_path / root).mkdir()
        shutil.copy(slides / "tissue.tif", tmp_path / root / "tissue.tif")
    with (tmp_path / "breast" / "tissue.tif").open("ab") as file:
        file.write(b"another patient")
    return tmp_path


class House:
    """An application that asks for keys, and the keys it knows by name."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.file = folder / "keys.toml"
        self.file.touch()
        self.keys: dict[str, str] = {}
        self.executor = NumpyExecutor()
        roots = (str(folder / "colon"), str(folder / "breast"))
        self.settings = Settings(slides=roots, keys=self.file, **settings)

    def key(self, name: str, role: Role, roots: tuple[str, ...] | None = None, **more: Any) -> str:
        key = self.keys[name] = new_key()
        append_key(self.file, StoredKey(name=name, role=role, roots=roots, sha256=hash_of(key), **more))
        return key

    def app(self) -> FastAPI:
        return create_app(self.settings, Catalogue(self.settings.slides), self.executor)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        async with self.clients("127.0.0.1") as (client,):
            yield client

    @contextlib.asynccontextmanager
    async def clients(self, *addresses: str) -> AsyncIterator[list[httpx.AsyncClient]]:
        """Clients of one application, each at an address of its own."""
        app = self.app()
        async with app.router.lifespan_context(app), contextlib.AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    httpx.AsyncClient(
                        transport=httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 1234)),
                        base_url="http://test",
                    )
                )
                for address in addresses
            ]


@pytest.fixture
def house(two_roots: Path) -> House:
    return House(two_roots)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


async def only_slide(client: httpx.AsyncClient, key: str) -> str:
    (slide,) = (await client.get("/v1/slides", headers=bearer(key))).json()["slides"]
    return str(slide["id"])


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and template of every route that `app` has, whatever it is."""

    def walk(routes: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for route in routes:
            if hasattr(route, "effective_route_contexts"):  # how newer FastAPI keeps included routers
                for context in route.effective_route_contexts():
                    assert isinstance(context.original_route, APIRoute)
                    yield from ((method, context.path) for method in context.methods)
            else:
                assert isinstance(route, APIRoute), f"{route} is a route that asks nobody who they are"
                yield from ((method, prefix + route.path) for method in route.methods or ())

    yield from walk(app.routes, "")


def test_every_route_says_which_role_it_asks_for(house: House) -> None:
    routes = set(routes_of(house.app()))
    assert ("POST", "/v1/slides/{slide_id}/segment") in routes
    undeclared = {(method, path) for method, path in routes if _spelling(method, path) not in NEEDS}
    assert not undeclared, "declare them in access/rules.py"


def _spelling(method: str, path: str) -> str:
    if path.startswith("/sam"):
        path = f"/sam/{path.removeprefix('/sam').strip('/')}/".replace("//", "/")
    return f"{method} {path}"


async def test_every_route_refuses_a_caller_without_a_key_unless_it_is_open(house: House) -> None:
    async with house.client() as client:
        for method, template in sorted(set(routes_of(house.app()))):
            answer = await client.request(method, template.replace("{", "").replace("}", ""))
            if need_of(method, template).role is None:
                assert answer.status_code in (200, 404), (method, template)
            else:
                assert problem(answer) == (401, "unauthorized"), (method, template)
                assert answer.headers["www-authenticate"] == "Bearer"


REQUESTS: Mapping[str, tuple[str, str, Any]] = {
    "info": ("GET", "/v1/info", None),
    "list": ("GET", "/v1/slides", None),
    "tile": ("GET", "/v1/slides/{id}/iiif/0,0,512,512/256,/0/default.jpg", None),
    "thumbnail": ("GET", "/v1/slides/{id}/thumbnail", None),
    "docs": ("GET", "/openapi.json", None),
    "segment": ("POST", "/v1/slides/{id}/segment", BOX),
    "prewarm": ("POST", "/v1/slides/{id}/prewarm", {"points": [[600, 400]], "wait": True}),
    "sam": ("GET", "/sam/weights/", None),
    "register": ("POST", "/sam/weights/", {"type": "vit_b", "name": "x", "url": "x"}),
    "purge": ("DELETE", "/v1/slides/{id}/cache", None),
    "metrics": ("GET", "/metrics", None),
}
VIEWER = {"info", "list", "tile", "thumbnail", "docs"}
ANNOTATOR = VIEWER | {"segment", "prewarm", "sam"}


@pytest.mark.parametrize(
    ("role", "may"),
    [
        (Role.VIEWER, VIEWER),
        (Role.ANNOTATOR, ANNOTATOR),
        (Role.ADMIN, set(REQUESTS)),
        (Role.METRICS, {"metrics"}),
    ],
)
async def test_a_role_may_do_this_and_nothing_else(house: House, role: Role, may: set[str]) -> None:
    key, admin = house.key("somebody", role), house.key("admin", Role.ADMIN, ("colon",))
    async with house.client() as client:
        slide = await only_slide(client, admin)
        for name, (method, path, body) in REQUESTS.items():
            answer = await client.request(method, path.format(id=slide), json=body, headers=bearer(key))
            if name in may:
                assert answer.is_success, (name, answer.text)
            else:
                assert problem(answer) == (403, "forbidden"), name


async def test_what_asks_for_a_role_is_for_the_browsers_own_cache_only(house: House) -> None:
    admin = house.key("admin", Role.ADMIN, ("colon",))
    async with house.client() as client:
        slide = await only_slide(client, admin)
        more = {"description": ("GET", "/v1/slides/{id}/iiif/info.json", None), "404": ("GET", "/v1/slides/x", None)}
        for name, (method, path, body) in (REQUESTS | more).items():
            answer = await client.request(method, path.format(id=slide), json=body, headers=bearer(admin))
            kept = "no-store" if name == "segment" else "private, no-cache"
            assert answer.headers["cache-control"] == kept, name


async def test_an_identity_sees_its_roots_and_the_others_as_if_they_were_not_there(house: House) -> None:
    colon, breast = house.key("c", Role.ADMIN, ("colon",)), house.key("b", Role.ADMIN, ("breast",))
    everything, nothing = house.key("all", Role.VIEWER), house.key("none", Role.VIEWER, ())
    async with house.client() as client:
        theirs = await only_slide(client, breast)
        assert await only_slide(client, colon) != theirs
        assert len((await client.get("/v1/slides", headers=bearer(everything))).json()["slides"]) == 2
        assert (await client.get("/v1/slides", headers=bearer(nothing))).json()["slides"] == []
        for name, (method, path, body) in REQUESTS.items():
            if "{id}" in path:
                other, absent = [
                    await client.request(method, path.format(id=one), json=body, headers=bearer(colon))
                    for one in (theirs, "a" * 20)
                ]
                assert problem(other) == (404, "unknown-slide"), name
                told, expected = other.json(), absent.json()
                del told["request_id"], expected["request_id"]
                assert told == expected, name
                assert set(other.headers) == set(absent.headers), name


async def test_looking_for_a_slide_of_another_root_takes_the_same_steps_as_for_one_that_is_not_there(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root is listed again for an unknown id; were it not for one in another root, the time would tell."""
    catalogue = Catalogue(house.settings.slides)
    (theirs,) = catalogue.list(roots={"breast"}).slides
    scans = []
    monkeypatch.setattr(catalogue, "rescan", lambda: scans.append(1))
    taken = []
    for slide_id in (theirs.id, "a" * 20):
        with pytest.raises(UnknownSlide) as refused:
            catalogue.get(slide_id, {"colon"})
        taken.append((len(scans), refused.value.detail))
        scans.clear()
    assert taken[0] == taken[1]
    assert taken[0][0] > 0


async def test_anothers_refine_token_is_of_no_use_on_the_slides_that_one_sees(house: House) -> None:
    colon, breast = house.key("c", Role.ANNOTATOR, ("colon",)), house.key("b", Role.ANNOTATOR, ("breast",))
    async with house.client() as client:
        theirs, ours = await only_slide(client, breast), await only_slide(client, colon)
        answer = await client.post(f"/v1/slides/{theirs}/segment", json=BOX, headers=bearer(breast))
        stolen = {"prompts": [{"refine": answer.json()["results"][0]["refine"], "points": [[650, 450, 1]]}]}
        there = await client.post(f"/v1/slides/{theirs}/segment", json=stolen, headers=bearer(colon))
        assert problem(there) == (404, "unknown-slide")
        here = await client.post(f"/v1/slides/{ours}/segment", json=stolen, headers=bearer(colon))
        assert here.status_code in (410, 422)
        owner = await client.post(f"/v1/slides/{theirs}/segment", json=stolen, headers=bearer(breast))
        assert owner.status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer  ",
        "Basic {key}",
        "Bearer {key}x",
        "Bearer wsk_" + "A" * 43,
        "Bearer a.b.c",
        "Bearer " + "x" * 5000,
        "{key}",
        "Bearer {hash}",
        "Bearer \xe4\xf6",
    ],
)
async def test_what_is_not_a_valid_key_is_refused_and_told_nothing(house: House, authorization: str) -> None:
    key = house.key("somebody", Role.ADMIN)
    header = authorization.format(key=key, hash=hash_of(key)).encode("latin-1")
    async with house.client() as client:
        answer = await client.get("/v1/slides", headers={b"authorization": header})
        assert problem(answer) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert set(answer.json()) == {"type", "title", "status", "detail", "request_id"}


async def test_a_key_ends_on_its_day(house: House) -> None:
    now = datetime.now(UTC)
    over = house.key("over", Role.ADMIN, expires=now - timedelta(seconds=1))
    valid = house.key("valid", Role.ADMIN, expires=now + timedelta(days=1))
    async with house.client() as client:
        assert (await client.get("/v1/info", headers=bearer(over))).status_code == 401
        assert (await client.get("/v1/info", headers=bearer(valid))).status_code == 200


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_key_taken_out_of_the_file_is_refused_without_a_restart(house: House) -> None:
    first, clock = house.key("first", Role.VIEWER), Clock()
    keys = KeyFile(house.file, clock=clock)
    assert keys.identity(first) == Identity("key:first", Role.VIEWER)
    second = house.key("second", Role.ADMIN, ("colon",))
    assert keys.identity(second) is None
    clock.seconds += LOOK_S
    assert keys.identity(second) == Identity("key:second", Role.ADMIN, frozenset({"colon"}))
    blocks = house.file.read_text().split("\n\n")
    house.file.write_text(next(block for block in blocks if "second" in block))
    clock.seconds += LOOK_S
    assert keys.identity(first) is None
    assert keys.identity(second) is not None
    house.file.write_text("[[key]] half written")
    clock.seconds += LOOK_S
    assert keys.identity(second) is not None, "a file that cannot be understood changes nothing"
    house.file.write_text(next(block for block in blocks if "second" in block))
    clock.seconds += LOOK_S
    assert keys.identity(second) is not None
    away = house.file.rename(house.file.with_name("away.toml"))
    clock.seconds += LOOK_S
    assert keys.identity(second) is None
    away.rename(house.file)
    clock.seconds += LOOK_S
    assert keys.identity(second) is not None, "the same file is back"
    house.file.unlink()
    clock.seconds += LOOK_S
    assert keys.identity(second) is None


def test_keys_that_could_not_be_read_once_are_read_as_soon_as_they_can_be(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    revoked, clock = house.key("revoked", Role.ADMIN), Clock()
    keys = KeyFile(house.file, clock=clock)
    house.file.write_text("")

    def refuse(*_: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as unreadable:
        unreadable.setattr(Path, "read_text", refuse)
        for _ in range(3):
            clock.seconds += LOOK_S
            assert keys.identity(revoked) is not None
    assert len(caplog.records) == 1, "and not one a second"
    clock.seconds += LOOK_S
    assert keys.identity(revoked) is None


def test_keys_are_compared_by_hash_in_constant_time_with_every_entry(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [house.key(f"k{number}", Role.VIEWER) for number in range(5)]
    keys, compared = KeyFile(house.file), []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("wsisam_service.access.keys.hmac.compare_digest", compare)
    for key in (made[0], made[4], new_key()):
        keys.identity(key)
        assert {other for _, other in compared} == {hash_of(key)}
        assert len(compared) == 5
        compared.clear()


def test_the_file_keeps_no_key_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    key = new_key()
    append_key(tmp_path / "keys.toml", StoredKey(name="a", role=Role.VIEWER, sha256=hash_of(key)))
    assert key.removeprefix("wsk_") not in (tmp_path / "keys.toml").read_text()
    assert (tmp_path / "keys.toml").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_the_file_of_keys_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    first, second = (StoredKey(name=name, role=Role.VIEWER, sha256=hash_of(new_key())) for name in ("a", "b"))
    append_key(file, first)
    before = file.read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            append_key(file, second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == before


@pytest.mark.parametrize(
    "text",
    ["key = 1", "[[key]]\nname = 'a'", "[[key]]\nname = 'a'\nrole = 'boss'\nsha256 = '0'", "[[keys]]\nname = 'a'", "="],
)
def test_a_file_that_is_not_one_of_keys_stops_the_service_at_its_start(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(KeyFileError) as refused:
        KeyFile(file)
    assert "\n" not in str(refused.value)


async def test_the_key_may_stand_in_the_path_of_anything(house: House) -> None:
    key = house.key("qupath", Role.ANNOTATOR, ("colon",))
    async with house.client() as client:
        for path in ("/sam/version/", "/samversion/", "/sam/weights?type=vit_t", "/v1/info", "/docs"):
            assert (await client.get(f"/k/{key}{path}")).status_code == 200, path
        assert (await client.get("/k/wrong/sam/version/")).status_code == 401
        assert (await client.get("/k/")).status_code == 200, "the page is open"
        slide = (await client.get(f"/k/{key}/v1/slides")).json()["slides"][0]["id"]
        info = (await client.get(f"/k/{key}/v1/slides/{slide}/iiif/info.json")).json()
        assert info["id"] == f"http://test/k/{key}/v1/slides/{slide}/iiif", "a viewer goes on from here"
        assert (await client.get(f"{info['id']}/full/64,/0/default.jpg")).status_code == 200
        other = await client.get(f"/v1/slides/{slide}/iiif/info.json", headers=bearer(key))
        assert key not in other.text
        assert key not in (await client.get("/openapi.json", headers=bearer(key))).text


async def test_a_key_in_the_path_is_seen_by_no_tracer(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    seen: list[str] = []

    class Tracer(trace.NoOpTracer):  # type: ignore[misc]
        def start_span(self, name: str, *context: Any, **told: Any) -> Any:
            seen.append(f"{name} {told}")
            return trace.INVALID_SPAN

    class Provider(trace.TracerProvider):  # type: ignore[misc]
        def get_tracer(self, *library: Any, **about: Any) -> Any:
            return Tracer()

    monkeypatch.setattr(trace, "get_tracer_provider", Provider)
    key = house.key("qupath", Role.ANNOTATOR)
    async with house.client() as client:
        assert (await client.get(f"/k/{key}/sam/version/")).status_code == 200
    assert key not in "".join(seen)


async def test_without_keys_everybody_may_do_everything_as_often_as_they_like(settings: Settings) -> None:
    free = settings.model_copy(update={"identity_requests_per_minute": 1})
    app = create_app(free, Catalogue(free.slides), NumpyExecutor())
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path in ("/v1/info", "/metrics", "/docs", "/k/anything/sam/version/"):
                assert (await client.get(path)).status_code == 200, path


async def test_an_identity_has_so_many_requests_a_minute_and_others_have_theirs(house: House) -> None:
    house.settings = house.settings.model_copy(update={"identity_requests_per_minute": 3})
    hasty, other = house.key("hasty", Role.VIEWER), house.key("other", Role.VIEWER)
    async with house.client() as client:
        answers = [await client.get("/v1/info", headers=bearer(hasty)) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert problem(answers[-1]) == (429, "rate-limited")
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
        assert (await client.get("/v1/info", headers=bearer(other))).status_code == 200


def test_what_an_identity_may_ask_comes_back_evenly_over_a_minute() -> None:
    clock, one = Clock(), Identity("one", Role.VIEWER)
    shares = Shares(per_minute=6, work=1, clock=clock)
    for _ in range(6):
        shares.count(one)
    with pytest.raises(RateLimited) as refused:
        shares.count(one)
    assert refused.value.retry_after_s == 10
    clock.seconds += 10
    shares.count(one)
    with pytest.raises(RateLimited):
        shares.count(one)
    clock.seconds += 3600
    for _ in range(6):
        shares.count(one)
    with pytest.raises(RateLimited):  # an hour saves up no more than a minute
        shares.count(one)


@pytest.mark.parametrize("how", ["header", "path", "token"])
async def test_wrong_credentials_are_limited_by_address_and_lock_out_nobody_elsewhere(house: House, how: str) -> None:
    house.settings = house.settings.model_copy(update={"wrong_credentials_per_minute": 3})
    right = house.key("right", Role.VIEWER)

    async def guess(client: httpx.AsyncClient) -> httpx.Response:
        if how == "path":
            return await client.get(f"/k/{new_key()}/v1/info")
        wrong = new_key() if how == "header" else "eyJhbGciOiJub25lIn0.e30."
        return await client.get("/v1/info", headers=bearer(wrong))

    async with house.clients("192.0.2.1", "192.0.2.2") as (guesser, other):
        for _ in range(5):
            assert (await guesser.get("/v1/info", headers=bearer(right))).status_code == 200, "right ones cost nothing"
        answers = [await guess(guesser) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
        assert problem(answers[-1]) == (429, "rate-limited")
        assert answers[-1].headers["content-type"] == "application/problem+json"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
        refused = await guesser.get("/v1/info", headers=bearer(right))
        assert refused.status_code == 429, "or a guesser would see which of its guesses was right"
        assert (await guesser.get("/v1/info")).status_code == 401, "who has no key is told that one is needed"
        assert (await guesser.get("/healthz")).status_code == 200
        assert (await other.get("/v1/info", headers=bearer(right))).status_code == 200
        assert (await guess(other)).status_code == 401


async def test_a_log_in_in_front_that_passes_its_header_on_hides_no_key_in_the_path_and_guesses_nothing(
    house: House,
) -> None:
    house.settings = house.settings.model_copy(update={"wrong_credentials_per_minute": 1})
    right, basic = house.key("right", Role.VIEWER), {"authorization": "Basic YTpi"}
    async with house.client() as client:
        for _ in range(3):
            assert (await client.get(f"/k/{right}/v1/info", headers=basic)).status_code == 200
            assert (await client.get("/v1/info", headers=basic)).status_code == 401
        assert (await client.get(f"/k/{right}/v1/info", headers=bearer(new_key()))).status_code == 401


async def test_without_keys_wrong_ones_are_not_counted(settings: Settings) -> None:
    free = settings.model_copy(update={"wrong_credentials_per_minute": 1})
    app = create_app(free, Catalogue(free.slides), NumpyExecutor())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        for _ in range(3):
            assert (await client.get("/v1/info", headers=bearer("anything"))).status_code == 200


def test_an_address_is_let_in_again_and_an_ipv6_network_counts_as_one() -> None:
    clock = Clock()
    failures = Failures(2, clock=clock)
    for address in ("2001:db8::1", "2001:db8:0:0:ffff::2"):
        failures.check(address)
        failures.count(address)
    failures.count("::ffff:192.0.2.1")
    failures.count("192.0.2.1")
    for address, held in (("2001:db8::3", True), ("2001:db8:0:1::1", False), ("192.0.2.1", True), ("", False)):
        with pytest.raises(RateLimited) if held else contextlib.nullcontext():
            failures.check(address)
    for _ in range(9):
        failures.count("192.0.2.1")  # while it is held, which makes it no longer
    clock.seconds += 30
    failures.check("192.0.2.1")
    failures.check("2001:db8::1")
    failures.count("2001:db8::1")
    with pytest.raises(RateLimited) as refused:
        failures.check("2001:db8::1")
    assert refused.value.retry_after_s == 30


def test_a_weaker_role_adds_no_roots_to_a_stronger_one() -> None:
    colon, breast = (Grant(role=Role.ANNOTATOR, roots=(root,)) for root in ("colon", "breast"))
    assert strongest([Grant(role=Role.VIEWER, roots=("liver",)), colon]) == (Role.ANNOTATOR, {"colon"})
    assert strongest([colon, Grant(role=Role.VIEWER), breast]) == (Role.ANNOTATOR, {"colon", "breast"})
    assert strongest([colon, Grant(role=Role.ANNOTATOR)]) == (Role.ANNOTATOR, None)
    assert strongest([]) is None


async def test_where_only_access_tokens_are_taken_nobody_comes_in_without_one() -> None:
    class Known:
        async def identity(self, token: str) -> Identity:
            return Identity(f"oidc:{token}", Role.VIEWER)

        async def aclose(self) -> None: ...

    gate = Gate(None, Known())
    assert gate.asks
    assert (await gate.identify("anna", None)).id == "oidc:anna"
    for bearer, path_key in ((None, None), (None, new_key()), (new_key(), None)):
        with pytest.raises(Unauthorized):
            await gate.identify(bearer, path_key)


def test_what_is_remembered_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowances, "MAX_NAMES", 100)
    failures = Failures(1)
    failures.count("192.0.2.1")
    for number in range(1_000):
        failures.count(f"10.0.{number // 256}.{number % 256}")
        with pytest.raises(RateLimited):  # heard of all the time, so it is not the one that is forgotten
            failures.check("192.0.2.1")
        failures.count("192.0.2.1")
    assert len(failures._allowances._known) == 100


async def test_work_under_way_is_counted_by_identity_until_it_is_done_or_its_client_gone(house: House) -> None:
    house.executor.hold = asyncio.Event()
    many, one = house.key("many", Role.ANNOTATOR, ("colon",)), house.key("one", Role.ANNOTATOR, ("colon",))
    async with house.client() as client:
        path = f"/v1/slides/{await only_slide(client, one)}/segment"

        def click(key: str) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(client.post(path, json=BOX, headers=bearer(key)))

        clicks = [click(many) for _ in range(20)]
        done, waiting = await _until_refused(clicks, 17)
        refused = [problem(task.result()) for task in done]
        assert refused == [(429, "rate-limited")] * 17
        assert all(task.result().headers["retry-after"] == "1" for task in done)
        others = click(one)
        viewing = await client.get("/v1/slides", headers=bearer(many))
        assert viewing.status_code == 200, "what keeps no model busy goes on"
        house.executor.hold.set()
        assert (await others).status_code == 200
        assert [(await task).status_code for task in waiting] == [200] * 3
        assert (await click(many)).status_code == 200


async def test_prewarms_behind_answers_are_counted_by_identity_too(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    many, one = house.key("many", Role.ANNOTATOR, ("colon",)), house.key("one", Role.ANNOTATOR, ("colon",))
    held = asyncio.Event()

    async def encode(*_: object) -> dict[str, str]:
        await held.wait()
        return {}

    monkeypatch.setattr(house.executor, "encode", encode)
    async with house.client() as client:
        path = f"/v1/slides/{await only_slide(client, one)}/prewarm"
        body = {"points": [[600, 400]]}
        answers = [await client.post(path, json=body, headers=bearer(many)) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert (await client.post(path, json=body, headers=bearer(one))).status_code == 202
        held.set()


async def _until_refused(
    tasks: list[asyncio.Task[httpx.Response]], number: int
) -> tuple[set[asyncio.Task[httpx.Response]], set[asyncio.Task[httpx.Response]]]:
    done: set[asyncio.Task[httpx.Response]] = set()
    waiting = set(tasks)
    while len(done) < number:
        finished, waiting = await asyncio.wait(waiting, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert finished
        done |= finished
    return done, waiting


async def test_the_description_says_what_each_operation_asks_for(house: House) -> None:
    key = house.key("somebody", Role.VIEWER)
    async with house.client() as client:
        document = (await client.get("/openapi.json", headers=bearer(key))).json()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    segment = document["paths"]["/v1/slides/{slide_id}/segment"]["post"]
    assert segment["security"] == [{"bearer": []}]
    assert {"401", "403", "429"} <= segment["responses"].keys()
    assert "`annotator`" in segment["description"]
    assert "security" not in document["paths"]["/healthz"]["get"]

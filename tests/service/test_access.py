"""Who may do what: keys, roles, roots, keys in the path, shares; on the whole application."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from stand_ins import NumpyExecutor

from wsisam_service.access.identity import Role
from wsisam_service.access.keys import StoredKey, append_key, hash_of, new_key
from wsisam_service.access.rules import NEEDS, need_of
from wsisam_service.app import create_app
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
        app = self.app()
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                yield client


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

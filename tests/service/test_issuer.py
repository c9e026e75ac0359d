"""An issuer of access tokens: which of its keys count, when it is asked for them, and what it may answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from joserfc.jwk import ECKey

from wsisam_service.access import issuer as issuer_module
from wsisam_service.access.issuer import ASK_AGAIN_S, FRESH_S, Issuer, IssuerError, signing_keys
from wsisam_service.errors import NotReady


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_keys_of_an_issuer_that_are_of_no_use_do_not_take_the_others_along() -> None:
    good = ECKey.generate_key("P-256", {"kid": "good"}).as_dict(private=False)
    odd = [
        ECKey.generate_key("P-256", {"kid": "good", "use": "enc"}).as_dict(private=False),
        {"kty": "EC", "kid": "1", "crv": "P-999", "x": "AA", "y": "AA"},
        {"kty": "RSA", "kid": "2", "n": 5},
        {"kty": ["RSA"], "kid": "3"},
        {"kty": "oct", "kid": "4", "k": "AAAA"},
        "no key",
    ]
    assert list(signing_keys({"keys": [*odd, good, *odd]})) == ["good"]
    assert list(signing_keys({"keys": odd})) == []
    for document in ({}, {"keys": None}, {"keys": {}}):
        assert signing_keys(document) == {}


ISSUER = "https://issuer.example"
DISCOVERY, KEYS = f"{ISSUER}/.well-known/openid-configuration", f"{ISSUER}/keys"


def issuer_that_answers(answers: Mapping[str, httpx.Response], clock: Callable[[], float] = time.monotonic) -> Issuer:
    """An issuer without a network."""
    issuer = Issuer(ISSUER, clock=clock)
    issuer._http._transport = httpx.MockTransport(lambda request: answers[str(request.url)])
    return issuer


def issuer_answers(jwks_uri: Any = KEYS) -> dict[str, httpx.Response]:
    key = ECKey.generate_key("P-256", {"kid": "good"}).as_dict(private=False)
    return {
        DISCOVERY: httpx.Response(200, json={"issuer": ISSUER, "jwks_uri": jwks_uri}),
        str(jwks_uri): httpx.Response(200, json={"keys": [key]}),
    }


async def test_an_issuers_keys_are_found_by_discovery() -> None:
    issuer = issuer_that_answers(issuer_answers())
    assert await issuer.key("good") is not None
    assert await issuer.key("bad") is None
    await issuer.aclose()


async def test_an_issuer_is_not_asked_for_keys_that_are_fresh() -> None:
    clock = Clock()
    issuer = issuer_that_answers(issuer_answers(), clock)
    assert await issuer.key("good") is not None
    clock.seconds += FRESH_S - 1
    assert await issuer.key("good") is not None
    assert issuer._asking is None
    clock.seconds += 1
    assert await issuer.key("good") is not None
    assert issuer._asking is not None
    await issuer.aclose()


async def test_an_issuer_that_is_away_is_asked_now_and_then() -> None:
    clock, answers = Clock(), issuer_answers()
    issuer = issuer_that_answers(answers, clock)
    assert await issuer.key("good") is not None
    answers[DISCOVERY] = httpx.Response(500)
    clock.seconds += FRESH_S
    assert await issuer.key("good") is not None
    assert issuer._asking is not None
    await asyncio.wait([issuer._asking])
    clock.seconds += ASK_AGAIN_S - 1
    assert await issuer.key("good") is not None
    assert issuer._asking is None
    await issuer.aclose()


async def test_an_issuer_that_never_answers_is_waited_for_so_long_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    issuer = Issuer(ISSUER)
    issuer._http._transport = httpx.MockTransport(never)
    monkeypatch.setattr(issuer_module, "FETCH_S", 0.01)
    with pytest.raises(NotReady):
        await asyncio.wait_for(issuer.key("good"), 20)
    await issuer.aclose()


async def test_a_caller_who_leaves_takes_no_answer_of_the_issuer_from_the_others() -> None:
    answers, asked, go = issuer_answers(), asyncio.Event(), asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.set()
        await go.wait()
        return answers[str(request.url)]

    issuer = Issuer(ISSUER)
    issuer._http._transport = httpx.MockTransport(answer)
    leaving, staying = (asyncio.create_task(issuer.key("good")) for _ in range(2))
    await asked.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    go.set()
    assert await staying is not None
    await issuer.aclose()


@pytest.mark.parametrize(
    "changed",
    [
        {DISCOVERY: httpx.Response(302, headers={"location": f"{ISSUER}/elsewhere"})},
        {KEYS: httpx.Response(302, headers={"location": "http://issuer.example/keys"})},
        {DISCOVERY: httpx.Response(500, json={"issuer": ISSUER, "jwks_uri": KEYS})},
        {DISCOVERY: httpx.Response(200, json={"issuer": "https://other.example", "jwks_uri": KEYS})},
        {DISCOVERY: httpx.Response(200, json=[])},
        {DISCOVERY: httpx.Response(200, text="<html>")},
        {KEYS: httpx.Response(200, json=[])},
        {KEYS: httpx.Response(200, content=b'{"keys": []}' + b" " * (1 << 20))},
        issuer_answers("http://issuer.example/keys"),
        issuer_answers("http://192.168.0.1/keys"),
        issuer_answers("https://[issuer/keys"),
        issuer_answers("https:///keys"),
        issuer_answers("https://issuer.example:port/keys"),
        issuer_answers(7),
    ],
)
async def test_an_issuer_whose_answer_is_not_what_it_should_be_gives_no_keys(
    changed: dict[str, httpx.Response],
) -> None:
    elsewhere = {f"{ISSUER}/elsewhere": issuer_answers()[DISCOVERY]}
    in_the_clear = {"http://issuer.example/keys": issuer_answers()[KEYS]}
    issuer = issuer_that_answers(issuer_answers() | elsewhere | in_the_clear | changed)
    with pytest.raises(NotReady):
        await issuer.key("good")
    await issuer.aclose()


@pytest.mark.parametrize("url", ["http://issuer.example", "http://10.0.0.1", "https://", "issuer.example", ""])
def test_an_issuer_that_others_on_the_way_could_speak_for_is_refused(url: str) -> None:
    with pytest.raises(IssuerError):
        Issuer(url)


@pytest.mark.parametrize("url", ["https://issuer.example", "http://localhost:1", "http://127.0.0.1", "http://[::1]:1"])
async def test_an_issuer_over_tls_or_on_this_machine_is_taken(url: str) -> None:
    await Issuer(url).aclose()

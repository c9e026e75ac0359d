"""Access tokens of a real OpenID Connect issuer (npm's oidc-provider), good ones and bad ones, on the application."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey
from processes import Server, free_port
from stand_ins import NumpyExecutor

from wsisam_service.access import issuer as issuer_module
from wsisam_service.access.grants import SAME_NAMES, Grant
from wsisam_service.access.identity import Identity, Role
from wsisam_service.access.issuer import Issuer
from wsisam_service.access.tokens import AccessTokens
from wsisam_service.app import create_app
from wsisam_service.errors import Forbidden, NotReady, ServiceError, Unauthorized
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue

FOLDER = Path(__file__).resolve().parents[1] / "oidc"

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="needs node"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules" / "oidc-provider").is_dir(), reason="needs npm install --prefix tests/oidc"
    ),
]


class RealIssuer(Server):
    """oidc-provider on loopback, called `name`, which signs with `key_sets` in turn."""

    def __init__(self, folder: Path, key_sets: list[dict[str, Any]], name: str | None = None) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.name = name or self.address
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "keys.json").write_text(json.dumps(key_sets))
        command = ["node", str(FOLDER / "issuer.mjs"), str(self.port), self.name, str(folder / "keys.json")]
        super().__init__(command, folder / "issuer.log")
        self.await_listening()

    def token(self, client: str, resource: str = "urn:slides") -> str:
        form = {"grant_type": "client_credentials", "resource": resource}
        answer = httpx.post(f"{self.address}/token", data=form, auth=(client, "secret"), timeout=30)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def rotate(self) -> None:
        assert httpx.post(f"{self.address}/rotate").status_code == 200

    @property
    def asked(self) -> int:
        """How often its keys were asked for."""
        return int(httpx.get(f"{self.address}/asked").text)


def key_set(name: str) -> dict[str, Any]:
    """A JWK set with an RSA and an EC key, private parts included."""
    made = [
        RSAKey.generate_key(2048, {"kid": f"{name}-rsa", "use": "sig", "alg": "RS256"}),
        ECKey.generate_key("P-256", {"kid": f"{name}-ec", "use": "sig", "alg": "ES256"}),
    ]
    return {"keys": [key.as_dict(private=True) for key in made]}


@pytest.fixture(scope="module")
def key_sets() -> list[dict[str, Any]]:
    return [key_set("first"), key_set("second")]


@pytest.fixture(scope="module")
def real_issuer(tmp_path_factory: pytest.TempPathFactory, key_sets: list[dict[str, Any]]) -> Iterator[RealIssuer]:
    server = RealIssuer(tmp_path_factory.mktemp("issuer"), key_sets[:1])
    yield server
    server.close()


@pytest.fixture
def own_issuer(tmp_path: Path, key_sets: list[dict[str, Any]]) -> Iterator[RealIssuer]:
    """One that a test may rotate, freeze and end."""
    server = RealIssuer(tmp_path / "issuer", key_sets)
    yield server
    server.close()


@asynccontextmanager
async def tokens_of(
    server: RealIssuer, *, clock: Any = time.monotonic, now: Any = time.time, skew_s: int = 0
) -> AsyncIterator[AccessTokens]:
    issuer = Issuer(server.name, clock=clock)
    tokens = AccessTokens(issuer, "wsisam", roles_claim="roles", grants=SAME_NAMES, skew_s=skew_s, now=now)
    try:
        yield tokens
    finally:
        await tokens.aclose()


async def outcome(tokens: AccessTokens, token: str) -> str:
    """Whose the token is, or the name of the error."""
    try:
        return (await tokens.identity(token)).id
    except ServiceError as error:
        return type(error).__name__


async def test_a_token_lets_its_bearer_do_what_its_role_may(
    real_issuer: RealIssuer, make_slide: Any, tmp_path: Path
) -> None:
    make_slide()
    settings = Settings(slides=(str(tmp_path / "slides"),), oidc_issuer=real_issuer.name, oidc_audience="wsisam")
    app = create_app(settings, Catalogue(settings.slides), NumpyExecutor())
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def click(token: str) -> int:
                headers = {"authorization": f"Bearer {token}"}
                listed = await client.get("/v1/slides", headers=headers)
                if listed.status_code != 200:
                    return listed.status_code
                path = f"/v1/slides/{listed.json()['slides'][0]['id']}/segment"
                body = {"prompts": [{"box": [100, 100, 200, 200]}]}
                return (await client.post(path, json=body, headers=headers)).status_code

            assert await click(real_issuer.token("annotator")) == 200
            assert await click(real_issuer.token("annotator", "urn:slides-es")) == 200
            assert await click(real_issuer.token("viewer")) == 403
            assert await click(real_issuer.token("guest")) == 403
            assert await click(real_issuer.token("annotator", "urn:elsewhere")) == 401
            assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("client", "claim", "grants", "expected"),
    [
        ("annotator", "roles", SAME_NAMES, (Role.ANNOTATOR, None)),
        ("auth0", "https://hospital.example/roles", SAME_NAMES, (Role.ADMIN, None)),
        (
            "keycloak",
            "realm_access.roles",
            {
                "pathologists": Grant(role=Role.ANNOTATOR, roots=("colon", "breast")),
                "colon-guests": Grant(role=Role.VIEWER),
            },
            (Role.ANNOTATOR, frozenset({"colon", "breast"})),
        ),
        ("keycloak", "roles", SAME_NAMES, None),
        ("keycloak", "realm_access.roles.more", SAME_NAMES, None),
        ("guest", "roles", SAME_NAMES, None),
    ],
)
async def test_a_claim_says_which_role_and_which_roots(
    real_issuer: RealIssuer, client: str, claim: str, grants: Any, expected: Any
) -> None:
    issuer = Issuer(real_issuer.name)
    tokens = AccessTokens(issuer, "wsisam", roles_claim=claim, grants=grants, skew_s=0)
    try:
        if expected is None:
            with pytest.raises(Forbidden):
                await tokens.identity(real_issuer.token(client))
        else:
            assert await tokens.identity(real_issuer.token(client)) == Identity(f"oidc:{client}", *expected)
    finally:
        await tokens.aclose()


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    head, claims, signature = token.split(".")
    read = [json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in (head, claims)]
    return read[0], read[1], signature


async def test_forged_tokens_are_refused(real_issuer: RealIssuer, key_sets: list[dict[str, Any]]) -> None:
    good = real_issuer.token("viewer")
    header, claims, signature = parts(good)
    public = RSAKey.import_key(key_sets[0]["keys"][0]).as_pem(private=False)
    as_text = f"{encoded(header | {'alg': 'HS256'})}.{encoded(claims)}"
    mac = base64.urlsafe_b64encode(hmac.new(public, as_text.encode(), hashlib.sha256).digest()).decode().rstrip("=")
    stranger = RSAKey.generate_key(2048, {"kid": header["kid"]})
    forged = {
        "no signature": f"{encoded(header | {'alg': 'none'})}.{encoded(claims)}.",
        "none in another spelling": f"{encoded(header | {'alg': 'NoNe'})}.{encoded(claims)}.{signature}",
        "signed with the public key as a secret": f"{as_text}.{mac}",
        "signed with a stranger's key": jwt.encode(header, claims, stranger),
        "a key of its own in the header": jwt.encode(
            header | {"jwk": stranger.as_dict(private=False)}, claims, stranger
        ),
        "another role": f"{good.split('.')[0]}.{encoded(claims | {'roles': ['admin']})}.{signature}",
        "another algorithm": f"{encoded(header | {'alg': 'ES256'})}.{encoded(claims)}.{signature}",
        "no key": f"{encoded({'alg': 'RS256'})}.{encoded(claims)}.{signature}",
        "a list as its header": f"{encoded([])}.{encoded(claims)}.{signature}",  # type: ignore[arg-type]
        "deep": f"{base64.urlsafe_b64encode(b'[' * 9000).decode()}.{encoded(claims)}.{signature}",
        "no base64": f"A{good}",
        "other letters": good + "\xe4",
        "five parts": good + ".a.b",
    }
    async with tokens_of(real_issuer) as tokens:
        assert (await tokens.identity(good)).role is Role.VIEWER
        for name, token in forged.items():
            assert await outcome(tokens, token) == "Unauthorized", name


async def test_claims_that_the_issuer_signed_and_we_must_refuse(
    real_issuer: RealIssuer, key_sets: list[dict[str, Any]]
) -> None:
    """Made with the issuer's own key, as it has no way of making them."""
    header, claims, _ = parts(real_issuer.token("viewer"))
    key = RSAKey.import_key(key_sets[0]["keys"][0])
    now = int(time.time())
    async with tokens_of(real_issuer, skew_s=30) as tokens:
        assert await tokens.identity(jwt.encode(header, claims | {"exp": now - 20, "nbf": now + 20}, key))
        for change in (
            {"exp": now - 40},
            {"exp": None},
            {"exp": "never"},
            {"nbf": now + 40},
            {"iat": now + 40},
            {"aud": "another-service"},
            {"aud": ["another-service", "wsisam2"]},
            {"aud": None},
            {"iss": "http://127.0.0.1:1"},
            {"iss": None},
            {"sub": None},
            {"sub": 7},
            {"sub": "a\nb"},
            {"sub": "x" * 300},
            {"more": "x" * 20_000},
        ):
            changed = {name: value for name, value in (claims | change).items() if value is not None}
            assert await outcome(tokens, jwt.encode(header, changed, key)) == "Unauthorized", change
        for payload in (b"[]", b"7", b"", b'{"sub": %s}' % (b"[" * 3_000 + b"]" * 3_000)):
            token = jws.serialize_compact(header, payload, key)
            assert await outcome(tokens, token) == "Unauthorized", payload


async def test_what_the_issuer_signed_for_another_use_is_no_access_token(
    real_issuer: RealIssuer, key_sets: list[dict[str, Any]]
) -> None:
    header, claims, _ = parts(real_issuer.token("viewer"))
    key = RSAKey.import_key(key_sets[0]["keys"][0])
    async with tokens_of(real_issuer) as tokens:
        for use in ("at+jwt", "application/at+jwt", "JWT"):
            assert await outcome(tokens, jwt.encode(header | {"typ": use}, claims, key)) == "oidc:viewer"
        for use in ("id+jwt", "logout+jwt"):
            assert await outcome(tokens, jwt.encode(header | {"typ": use}, claims, key)) == "Unauthorized"


async def test_roles_that_are_no_texts_give_nothing(real_issuer: RealIssuer, key_sets: list[dict[str, Any]]) -> None:
    header, claims, _ = parts(real_issuer.token("viewer"))
    key = RSAKey.import_key(key_sets[0]["keys"][0])
    async with tokens_of(real_issuer) as tokens:
        odd = claims | {"roles": [7, ["admin"], {"name": "admin"}, "viewer"]}
        assert (await tokens.identity(jwt.encode(header, odd, key))).role is Role.VIEWER


async def test_a_token_ends_when_it_says_give_or_take_the_skew(real_issuer: RealIssuer) -> None:
    token = real_issuer.token("viewer")
    for later_s, valid in ((580, True), (620, True), (640, False)):
        async with tokens_of(real_issuer, now=lambda later_s=later_s: time.time() + later_s, skew_s=30) as tokens:
            if valid:
                assert await tokens.identity(token)
            else:
                with pytest.raises(Unauthorized):
                    await tokens.identity(token)


async def test_another_issuer_with_the_same_keys_is_not_believed(
    real_issuer: RealIssuer, tmp_path: Path, key_sets: list[dict[str, Any]]
) -> None:
    other = RealIssuer(tmp_path / "other", key_sets[:1])
    try:
        async with tokens_of(real_issuer) as tokens:
            with pytest.raises(Unauthorized):
                await tokens.identity(other.token("viewer"))
    finally:
        other.close()


async def test_an_issuer_that_calls_itself_otherwise_gives_no_keys(
    tmp_path: Path, key_sets: list[dict[str, Any]]
) -> None:
    pretender = RealIssuer(tmp_path / "pretender", key_sets[:1], name="https://issuer.example")
    issuer = Issuer(pretender.address)
    try:
        with pytest.raises(NotReady):
            await issuer.key("first-rsa")
    finally:
        await issuer.aclose()
        pretender.close()


async def test_after_a_rotation_the_new_key_is_fetched_once_for_all_who_wait(own_issuer: RealIssuer) -> None:
    before = own_issuer.token("viewer")
    clock = Clock()
    async with tokens_of(own_issuer, clock=clock) as tokens:
        assert await tokens.identity(before)
        own_issuer.rotate()
        after = own_issuer.token("viewer")
        assert parts(after)[0]["kid"] == "second-rsa"
        asked = own_issuer.asked
        clock.seconds += issuer_module.ASK_AGAIN_S
        found = await asyncio.gather(*(tokens.identity(after) for _ in range(20)))
        assert {one.id for one in found} == {"oidc:viewer"}
        assert own_issuer.asked == asked + 1
        header, claims, signature = parts(after)
        for number in range(20):
            made_up = f"{encoded(header | {'kid': f'made-up-{number}'})}.{encoded(claims)}.{signature}"
            with pytest.raises(Unauthorized):
                await tokens.identity(made_up)
        assert own_issuer.asked == asked + 1, "made-up key ids must not make us flood the issuer"
        with pytest.raises(Unauthorized):
            await tokens.identity(before)


async def test_an_issuer_that_is_silent_or_gone_stops_nobody_whose_key_is_known(
    own_issuer: RealIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "FETCH_S", 60.0)
    known, clock = own_issuer.token("viewer"), Clock()
    header, claims, signature = parts(known)
    unknown = f"{encoded(header | {'kid': 'second-rsa'})}.{encoded(claims)}.{signature}"
    async with tokens_of(own_issuer, clock=clock) as tokens, asyncio.timeout(50):
        assert await outcome(tokens, known) == "oidc:viewer"
        own_issuer.signal(signal.SIGSTOP)
        clock.seconds += issuer_module.FRESH_S
        assert await outcome(tokens, known) == "oidc:viewer", "due to be renewed, and nobody waits for that"
        waiting = [asyncio.create_task(outcome(tokens, unknown)) for _ in range(5)]
        assert await outcome(tokens, known) == "oidc:viewer"
        assert not any(task.done() for task in waiting)
        own_issuer.kill()
        assert await asyncio.gather(*waiting) == ["NotReady"] * 5, "it cannot be known whether they are good"
        assert await outcome(tokens, unknown) == "NotReady"
        assert await outcome(tokens, known) == "oidc:viewer"
        clock.seconds += issuer_module.STALE_S
        assert await outcome(tokens, known) == "NotReady", "keys do not count for ever"
        own_issuer.start()
        own_issuer.await_listening()
        clock.seconds += issuer_module.ASK_AGAIN_S
        assert await outcome(tokens, known) == "oidc:viewer", "back without a restart of ours"


async def test_a_silent_issuer_is_waited_for_so_long_and_no_longer(
    own_issuer: RealIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "FETCH_S", 0.1)
    token = own_issuer.token("viewer")
    own_issuer.signal(signal.SIGSTOP)
    async with tokens_of(own_issuer) as tokens:
        with pytest.raises(NotReady) as refused:
            await tokens.identity(token)
    assert refused.value.retry_after_s is not None


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

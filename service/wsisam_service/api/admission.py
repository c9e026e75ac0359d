"""What every route asks before it runs: who calls, whether they may, and whether it is not too much of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import Request

from wsisam_service.access.failures import Failures
from wsisam_service.access.gate import Gate, bearer_of
from wsisam_service.access.identity import Identity, address_of, set_identity
from wsisam_service.access.path_keys import path_key_of
from wsisam_service.access.rules import need_of, suffices
from wsisam_service.access.shares import Shares
from wsisam_service.access.tokens import NoRole
from wsisam_service.api.auditing import note_caller
from wsisam_service.errors import Forbidden, Unauthorized


@dataclass(frozen=True, slots=True)
class Admission:
    gate: Gate
    shares: Shares
    failures: Failures


async def admit(request: Request) -> AsyncIterator[None]:
    """A dependency of every route. Raises `Unauthorized`, `Forbidden`, `RateLimited`, and `NotReady` where an access
    token cannot be judged.
    """
    need = need_of(request.method, request.scope["route"].path)
    if need.role is None:
        yield
        return
    admission: Admission = request.app.state.admission
    identity = await _identify(request, admission)
    set_identity(request.scope, identity)
    if not suffices(identity.role, need.role):
        raise Forbidden(f"this needs the role {need.role}")
    if not admission.gate.asks:
        yield
        return
    admission.shares.count(identity)
    with admission.shares.working(identity) if need.work else contextlib.nullcontext():
        yield


async def _identify(request: Request, admission: Admission) -> Identity:
    """Who asks. Credentials from an address with too many wrong ones are not looked at: `RateLimited`. Who has none
    guesses nothing, and is told that they are needed.
    """
    bearer, path_key = bearer_of(request.headers.get("authorization")), path_key_of(request.scope)
    if not admission.gate.asks or (bearer is None and path_key is None):
        return await admission.gate.identify(bearer, path_key)
    address = address_of(request.scope)
    admission.failures.check(address)
    try:
        return await admission.gate.identify(bearer, path_key)
    except Unauthorized:
        admission.failures.count(address)
        raise
    except NoRole as error:
        note_caller(request.scope, error.who)
        raise

"""Refine tokens: only this server's, only for their time."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsisam_service.errors import RefineExpired
from wsisam_service.segmenting.tokens import RefineToken, TokenSigner, key_fingerprint
from wsisam_service.views import View

TOKEN = RefineToken("abc", "lite_medsam", "f" * 64, View(256, 2, 40, 48, 0.4990))


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_token_comes_back_whole_and_is_url_safe() -> None:
    signer = TokenSigner(b"key", 3600)
    text = signer.sign(TOKEN)
    assert signer.verify(text) == TOKEN
    assert set(text) <= set(string.ascii_letters + string.digits + "-_")


def test_a_token_ends_with_its_time() -> None:
    clock = Clock()
    signer = TokenSigner(b"key", 60, clock)
    text = signer.sign(TOKEN)
    clock.now += 59
    signer.verify(text)
    clock.now += 2
    with pytest.raises(RefineExpired):
        signer.verify(text)


def test_a_token_of_another_key_is_refused() -> None:
    with pytest.raises(RefineExpired):
        TokenSigner(b"one", 60).verify(TokenSigner(b"two", 60).sign(TOKEN))


@given(st.integers(0, 60), st.characters(min_codepoint=33, max_codepoint=126))
def test_a_changed_token_is_refused(place: int, character: str) -> None:
    signer = TokenSigner(b"key", 60)
    text = signer.sign(TOKEN)
    changed = text[:place] + character + text[place + 1 :]
    if changed != text:
        with pytest.raises(RefineExpired):
            signer.verify(changed)


@pytest.mark.parametrize("text", ["", "a", "====", "é", "\ud800", "A" * 5000])
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(RefineExpired):
        TokenSigner(b"key", 60).verify(text)


def test_a_fingerprint_is_hidden_only_where_there_is_a_key() -> None:
    assert key_fingerprint("f" * 64, None) == "f" * 64
    hidden = key_fingerprint("f" * 64, b"secret")
    assert len(hidden) == 32
    assert hidden != key_fingerprint("f" * 64, b"other")

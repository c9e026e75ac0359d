"""Refine tokens: only this server's, only for their time."""

from __future__ import annotations

import string
from base64 import urlsafe_b64decode
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsisam_service.errors import RefineExpired
from wsisam_service.segmenting.tokens import RefineToken, TokenSigner, key_fingerprint
from wsisam_service.views import View

ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
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


@given(st.data())
def test_a_changed_token_is_refused(data: st.DataObject) -> None:
    signer = TokenSigner(b"key", 60, Clock())
    text = signer.sign(TOKEN)
    place = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda c: c != text[place]))
    with pytest.raises(RefineExpired):
        signer.verify(text[:place] + character + text[place + 1 :])


def test_another_text_of_the_same_bytes_is_refused() -> None:
    """Base64 may say "+/" for "-_", may be padded, and leaves bits of its last character unused."""
    clock = Clock()
    signer = TokenSigner(b"key", 60, clock)
    texts = []
    for number in range(100):
        text = signer.sign(replace(TOKEN, refine_id="a" * (number % 3)))
        padding = -len(text) % 4
        texts += [(text, text.replace("-", "+").replace("_", "/")), (text, text + "=" * padding)]
        if padding:
            texts.append((text, text[:-1] + ALPHABET[ALPHABET.index(text[-1]) ^ 1]))
        clock.now += 1
    twins = [(text, twin) for text, twin in texts if twin != text]
    assert len(twins) > 150
    for text, twin in twins:
        assert urlsafe_b64decode(f"{twin}===") == urlsafe_b64decode(f"{text}===")
        with pytest.raises(RefineExpired):
            signer.verify(twin)


@pytest.mark.parametrize("text", ["", "a", "====", "é", "\ud800", "A" * 5000])
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(RefineExpired):
        TokenSigner(b"key", 60).verify(text)


def test_a_fingerprint_is_hidden_only_where_there_is_a_key() -> None:
    assert key_fingerprint("f" * 64, None) == "f" * 64
    hidden = key_fingerprint("f" * 64, b"secret")
    assert len(hidden) == 32
    assert hidden != key_fingerprint("f" * 64, b"other")

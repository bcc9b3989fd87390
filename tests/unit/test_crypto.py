"""Bodies are sealed; digests do not rotate with the data key."""

from __future__ import annotations

import pytest

pytest.importorskip("cryptography")

from agentflow.crypto import AesGcmCipher, new_key
from agentflow.errors import DecodeError, SettingsError


def test_a_sealed_body_opens_with_its_key_and_hides_its_text() -> None:
    """AES-GCM with the digest as associated data."""
    cipher = AesGcmCipher.from_text(new_key())
    digest = cipher.digest(b"words")
    sealed = cipher.seal(digest, b"words")

    assert b"words" not in sealed
    assert cipher.open(digest, sealed) == b"words"


def test_an_altered_or_moved_body_is_noticed() -> None:
    """A body belongs to its digest."""
    cipher = AesGcmCipher.from_text(new_key())
    digest = cipher.digest(b"words")
    sealed = cipher.seal(digest, b"words")

    with pytest.raises(DecodeError, match="altered"):
        cipher.open(cipher.digest(b"other"), sealed)
    with pytest.raises(DecodeError, match="altered"):
        cipher.open(digest, sealed[:-1] + bytes([sealed[-1] ^ 1]))


def test_data_keys_rotate_and_digests_stay() -> None:
    """The new data key encrypts, the old one still decrypts."""
    digest_key, old = new_key().split(".")
    before = AesGcmCipher.from_text(f"{digest_key}.{old}")
    after = AesGcmCipher.from_text(f"{digest_key}.{new_key().split('.')[1]}.{old}")
    digest = before.digest(b"words")
    sealed = before.seal(digest, b"words")

    assert after.digest(b"words") == digest
    assert after.open(digest, sealed) == b"words"
    with pytest.raises(DecodeError, match="key that is not set"):
        before.open(digest, after.seal(digest, b"words"))


@pytest.mark.parametrize("text", ["", "abc", "a.b", "é.é", new_key() + "x"])
def test_a_wrong_key_text_teaches(text: str) -> None:
    """The hint says how to make a key."""
    with pytest.raises(SettingsError) as caught:
        AesGcmCipher.from_text(text)

    assert "new_key" in caught.value.hint

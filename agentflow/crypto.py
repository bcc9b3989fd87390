"""AES-256-GCM for every stored body (extra ``crypto``: the `cryptography` package).

A key text is ``DIGEST.DATA[.OLD…]``: base64url keys of 32 bytes each. The first makes digests and
fingerprints (HMAC-SHA-256: equal values stay equal, and nobody without the key can guess them); it
must never change. The second encrypts; older ones still decrypt, so that data keys can rotate.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agentflow.codec import squeeze, unsqueeze
from agentflow.errors import DecodeError, SettingsError

_KEY_BYTES = 32
_NONCE_BYTES = 12  # 96 bits: NIST SP 800-38D, section 8.2.2, random nonces
_ID_BYTES = 4  # tells which data key sealed a body


class AesGcmCipher:
    """Seals bodies with AES-256-GCM; the digest is the associated data.

    Args:
        digest_key: 32 bytes; makes digests; never changes.
        data_keys: 32 bytes each; the first encrypts, all decrypt.

    Raises:
        SettingsError: a key is missing or has another length.
    """

    def __init__(self, digest_key: bytes, data_keys: Sequence[bytes]) -> None:
        if not data_keys or any(len(k) != _KEY_BYTES for k in (digest_key, *data_keys)):
            msg = "the encryption key must be DIGEST.DATA, two base64 keys of 32 bytes"
            hint = (
                "Make one with: python -c 'from agentflow.crypto import new_key; print(new_key())'"
            )
            raise SettingsError(msg, hint=hint)
        self._digest_key = digest_key
        self._keys = {_key_id(key): AESGCM(key) for key in data_keys}
        self._current = _key_id(data_keys[0])

    @classmethod
    def from_text(cls, text: str) -> AesGcmCipher:
        """Return the cipher of a key text ``DIGEST.DATA[.OLD…]``.

        Raises:
            SettingsError: it is no such text.
        """
        try:
            keys = [base64.urlsafe_b64decode(part + "==") for part in text.strip().split(".")]
        except (binascii.Error, ValueError):
            keys = [b""]
        return cls(keys[0], keys[1:])

    def digest(self, plain: bytes) -> bytes:
        """Return HMAC-SHA-256 of *plain* under the digest key."""
        return hmac.new(self._digest_key, plain, hashlib.sha256).digest()

    def seal(self, digest: bytes, plain: bytes) -> bytes:
        """Return key id ‖ nonce ‖ ciphertext of the compressed body."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._keys[self._current].encrypt(nonce, squeeze(plain), digest)
        return self._current + nonce + sealed

    def open(self, digest: bytes, sealed: bytes) -> bytes:
        """Return the plain bytes.

        Raises:
            DecodeError: the key is missing, or the body is not what its digest says.
        """
        key = self._keys.get(sealed[:_ID_BYTES])
        if key is None:
            msg = "a stored body was encrypted with a key that is not set here"
            raise DecodeError(msg, hint="Add the old data key behind the new one: DIGEST.NEW.OLD.")
        nonce = sealed[_ID_BYTES : _ID_BYTES + _NONCE_BYTES]
        try:
            return unsqueeze(key.decrypt(nonce, sealed[_ID_BYTES + _NONCE_BYTES :], digest))
        except InvalidTag as e:
            msg = f"the stored body {digest.hex()[:12]} was altered, or belongs elsewhere"
            raise DecodeError(msg, hint="Run `agentflow verify RUN`.") from e


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"agentflow key id" + key).digest()[:_ID_BYTES]


def new_key() -> str:
    """Return a new key text for ``AGENTFLOW_ENCRYPTION_KEY``."""
    parts = (base64.urlsafe_b64encode(os.urandom(_KEY_BYTES)).decode().rstrip("=") for _ in "dk")
    return ".".join(parts)

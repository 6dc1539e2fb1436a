"""Signatures, against RFC 8032's own examples and another implementation."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from pipeline.serve._ed25519 import verify

# RFC 8032, section 7.1: public key, message, signature.
EXAMPLES = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.mark.parametrize(("key", "message", "signature"), EXAMPLES)
def test_the_standards_examples(key: str, message: str, signature: str) -> None:
    """What the standard says is a signature is one."""
    assert verify(bytes.fromhex(key), bytes.fromhex(message), bytes.fromhex(signature))


@given(seed=st.binary(min_size=32, max_size=32), message=st.binary(max_size=200), bit=st.integers(0, 511))
def test_another_implementations_signatures(seed: bytes, message: bytes, bit: int) -> None:
    """Signatures of another implementation hold; with any bit of signature, message or key changed they do not."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    key, signature = private.public_key().public_bytes_raw(), private.sign(message)
    assert verify(key, message, signature)
    assert not verify(key, message, _flipped(signature, bit))
    assert not verify(key, message + b"\0", signature)
    assert not verify(_flipped(key, bit % 256), message, signature)


def test_a_second_form_of_a_signature() -> None:
    """The number in a signature has one form: with the group's order added, it is refused."""
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    signature = private.sign(b"x")
    response = int.from_bytes(signature[32:], "little") + ORDER
    other = signature[:32] + response.to_bytes(32, "little")
    assert not verify(private.public_key().public_bytes_raw(), b"x", other)


@pytest.mark.parametrize(
    ("key", "signature"),
    [
        (b"", bytes(64)),
        (bytes(31), bytes(64)),
        (bytes(32), b""),
        (b"\xff" * 32, bytes(64)),
        (b"\2" + bytes(31), bytes(64)),
    ],
)
def test_what_is_no_key_or_no_signature(key: bytes, signature: bytes) -> None:
    """Bytes of another length, or that are no point, are no signature, and no error."""
    assert not verify(key, b"", signature)


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)

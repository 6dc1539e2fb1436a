"""Verify an Ed25519 signature (RFC 8032, section 5.1.7).  Signing is not here: only public values are handled.

About 5 ms for each signature, without a package of its own; points are in extended homogeneous coordinates.
"""

from __future__ import annotations

import hashlib

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493  # order of the base point
_D = -121665 * pow(121666, -1, _P) % _P
_SQRT_M1 = pow(2, (_P - 1) // 4, _P)

_Point = tuple[int, int, int, int]  # X, Y, Z, T with x = X/Z, y = Y/Z, x * y = T/Z


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether *signature* (64 bytes) of *message* was made with the private half of *public_key* (32 bytes)."""
    if len(public_key) != 32 or len(signature) != 64:
        return False
    key, commitment = _decoded(public_key), _decoded(signature[:32])
    response = int.from_bytes(signature[32:], "little")
    if key is None or commitment is None or response >= _L:
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    challenge = int.from_bytes(digest, "little") % _L
    return _equal(_times(response, _BASE), _sum(commitment, _times(challenge, key)))


def _sum(a: _Point, b: _Point) -> _Point:
    """Add two points (section 5.1.4)."""
    lower = (a[1] - a[0]) * (b[1] - b[0]) % _P
    upper = (a[1] + a[0]) * (b[1] + b[0]) % _P
    t = 2 * a[3] * b[3] * _D % _P
    z = 2 * a[2] * b[2] % _P
    e, f, g, h = upper - lower, z - t, z + t, upper + lower
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(n: int, point: _Point) -> _Point:
    """Multiply a point by a number, bit by bit."""
    total: _Point = (0, 1, 1, 0)
    while n:
        if n & 1:
            total = _sum(total, point)
        point = _sum(point, point)
        n >>= 1
    return total


def _equal(a: _Point, b: _Point) -> bool:
    return (a[0] * b[2] - b[0] * a[2]) % _P == 0 and (a[1] * b[2] - b[1] * a[2]) % _P == 0


def _decoded(data: bytes) -> _Point | None:
    """Read a point (section 5.1.3); None where the bytes are none, or not written in the one way that is allowed."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if y >= _P:
        return None
    squared = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(squared, (_P + 3) // 8, _P)
    if (x * x - squared) % _P:
        x = x * _SQRT_M1 % _P
    if (x * x - squared) % _P or (x == 0 and sign):
        return None
    x = _P - x if x & 1 != sign else x
    return x, y, 1, x * y % _P


def _base() -> _Point:
    found = _decoded((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
    assert found is not None  # noqa: S101  a constant
    return found


_BASE = _base()

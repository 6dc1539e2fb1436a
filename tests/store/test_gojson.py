"""Our JSON is Go's JSON, byte for byte."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import FormatError
from pipeline.store import gojson


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("</s>&<|im_end|>", r'"\u003c/s\u003e\u0026\u003c|im_end|\u003e"'),
        ("é \U0001f600 \x7f", '"é \U0001f600 \x7f"'),
        ("\u2028\u2029", r'"\u2028\u2029"'),
        ('"\\/', r'"\"\\/"'),
        ("\b\f\n\r\t\x00\x1f", r'"\b\f\n\r\t\u0000\u001f"'),
        (None, "null"),
        (True, "true"),
        (-7, "-7"),
        ([], "[]"),
        ({}, "{}"),
        (("a", [1, {"b": 2}]), '["a",[1,{"b":2}]]'),
    ],
)
def test_texts_and_shapes(value: object, text: str) -> None:
    """Escapes are Go's: HTML's characters and line separators, nothing else above ASCII."""
    assert gojson.encode(value) == text.encode()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (0.7, "0.7"),
        (-12.5, "-12.5"),
        (100.0, "100"),
        (1e-6, "0.000001"),
        (9.5e-7, "9.5e-7"),
        (1e-9, "1e-9"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1.5e300, "1.5e+300"),
        (5e-324, "5e-324"),
    ],
)
def test_floats(value: float, text: str) -> None:
    """Numbers are written as Go's float64 encoder writes them."""
    assert gojson.encode(value) == text.encode()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_their_value(value: float) -> None:
    """Every float reads back as itself."""
    back = float(json.loads(gojson.encode(value)))
    assert back == value
    assert math.copysign(1, back) == math.copysign(1, value)


def test_key_order() -> None:
    """Structs keep the order given, maps are sorted at every depth."""
    value = {"b": 1, "a": {"d": 1, "c": 2}}
    assert gojson.encode(value) == b'{"b":1,"a":{"d":1,"c":2}}'
    assert gojson.encode(value, sort_keys=True) == b'{"a":{"c":2,"d":1},"b":1}'


@pytest.mark.parametrize("value", [math.nan, math.inf, "\ud800", object()])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    """No invalid number, text or type gets into a blob."""
    with pytest.raises(FormatError):
        gojson.encode(value)

"""`State`: to a dictionary and back, with hostile dictionaries refused."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from kvmpy.devices.state import BYTE, State, integers
from kvmpy.errors import ImageError


class PointState(State):
    __slots__ = ("trail", "x")
    FIELDS: ClassVar = {"x": BYTE, "trail": integers(0, 2, 9)}

    def __init__(self, *, x=0, trail=()):
        self.x = x
        self.trail = list(trail)


def test_it_survives_json():
    state = PointState(x=7, trail=[1, 2])
    assert PointState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"x": 1},
        {"x": 1, "trail": [], "y": 2},
        {"x": 256, "trail": []},
        {"x": -1, "trail": []},
        {"x": 1.0, "trail": []},
        {"x": True, "trail": []},
        {"x": "1", "trail": []},
        {"x": 1, "trail": [1, 2, 3]},
        {"x": 1, "trail": [10]},
        {"x": 1, "trail": "12"},
        {"x": 1, "trail": None},
        ["x", "trail"],
        None,
    ],
)
def test_what_is_not_a_state_is_refused(fields):
    with pytest.raises(ImageError, match="PointState"):
        PointState.from_dict(fields)

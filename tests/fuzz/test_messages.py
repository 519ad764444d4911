"""What the lying front end makes of a seed: the same each time, mostly sound, and of every kind."""

from __future__ import annotations

import json

import pytest

from virtblk.errors import UsageError
from virtblk.fuzz.groups import FRONT_END, GROUPS, Coverage
from virtblk.fuzz.messages import HANG_UP, SEND, SOUND_FDS, WRONG_FDS, Facts, Generator, Op
from virtblk.vhost_user.backend import PROTOCOL_FEATURES

FEATURES = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 29 | 1 << 9
FACTS = Facts(features=FEATURES, protocol_features=PROTOCOL_FEATURES, queues=2, capacity=2048)


def cases(count: int) -> list[list[Op]]:
    return [Generator(f"5/{number}", FACTS).case() for number in range(count)]


def test_a_seed_is_a_case() -> None:
    assert cases(50) == cases(50)
    assert Generator("5/1", FACTS).case() != Generator("6/1", FACTS).case()


def test_a_case_survives_its_file() -> None:
    for ops in cases(50):
        assert [Op.from_json(json.loads(json.dumps(op.as_json()))) for op in ops] == ops
        assert all(op.text() for op in ops)


def test_every_kind_of_wrong_is_sent() -> None:
    coverage = Coverage()
    for ops in cases(1500):
        for op in ops:
            coverage.add(op.items)
    # Those of two attackers are not all this one's: 21 to 25, 28 and 47 are the guest's.
    mine = {item for group in GROUPS if FRONT_END in group.attackers for item in group.items}
    assert {item for item in mine if not coverage.counts[item]} == {21, 22, 23, 24, 25, 28, 47}
    fds = {name for ops in cases(1500) for op in ops for name in op.fds}
    assert fds == {*SOUND_FDS, *WRONG_FDS}


def test_most_of_it_is_sound() -> None:
    ops = [op for case in cases(300) for op in case if op.kind == SEND]
    broken = sum(bool(set(op.items) - {53, 70, 71, 72, 73}) for op in ops)
    assert 0.02 < broken / len(ops) < 0.35


def test_a_sound_session_is_sound() -> None:
    assert all(not op.items and not op.is_desync for op in Generator("1", FACTS).sound_session())


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "nothing"},
        {"payload": "xyz"},
        {"fds": ["unheard of"]},
        {"strange": 1},
        {"fds": 3},
        7,
        "send",
    ],
)
def test_what_is_no_operation_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="no operation"):
        Op.from_json(value)


def test_a_hang_up_parts_sessions() -> None:
    assert any(op.kind == HANG_UP for ops in cases(200) for op in ops[:-1])

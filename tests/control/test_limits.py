"""How fast the operator may do what costs others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from checkpoint_operator.fairness.rate_limit import RateLimit


def test_what_is_taken_is_waited_for_by_the_next_one() -> None:
    limit = RateLimit(100.0, clock=lambda: 0.0)
    assert [limit.reserve(50), limit.reserve(200), limit.reserve(1)] == [0.0, 0.5, 2.5]


def test_time_in_which_nothing_was_taken_is_not_saved_up() -> None:
    now = 0.0
    limit = RateLimit(100.0, clock=lambda: now)
    now = 1000.0
    assert limit.reserve(100) == 0.0
    assert limit.reserve(100) == 1.0


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 5)), min_size=1, max_size=30))
def test_never_more_is_used_in_any_time_than_the_rate_allows_and_one_amount(steps: list[tuple[float, float]]) -> None:
    now, used = 0.0, []
    limit = RateLimit(100.0, clock=lambda: now)
    for amount, pause in steps:
        now += pause
        used.append((now + limit.reserve(amount), amount))
    for first, (begin, _) in enumerate(used):
        taken = 0.0
        for moment, amount in used[first:]:
            assert taken <= (moment - begin) * 100.0 + 1e-6
            taken += amount

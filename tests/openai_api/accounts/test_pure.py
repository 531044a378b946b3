"""What keys look like, what limits say, and whose work it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openai_api.accounts import key_format
from openai_api.accounts.limits import DAY, MINUTE, KeyLimits, crowding, day_of, refusal
from openai_api.accounts.principals import Principal
from openai_api.accounts.usage import Asked, Tally, WorkRecord
from tests.openai_api.accounts.toy import HEAD, OTHER_ROUTE, ROUTE, SPARE, TAIL, hop

NOW = 1_800_000_000.0


def test_a_key_is_read_back_and_proves_itself_only() -> None:
    key, other = key_format.draw(), key_format.draw()
    assert key_format.parse(str(key)) == key
    assert key_format.proves(key.secret, key_format.digest(key.secret))
    assert not key_format.proves(other.secret, key_format.digest(key.secret))
    assert key.secret not in repr(key) and key.secret not in repr([key])
    assert len({key_format.draw() for _ in range(100)}) == 100


@given(st.text(), st.text(max_size=3))
def test_nothing_else_is_a_key(text: str, more: str) -> None:
    parsed = key_format.parse(text)
    assert parsed is None or str(parsed) == text
    key = str(key_format.draw())
    assert more == "" or (key_format.parse(key + more) is None and key_format.parse(more + key) is None)


@given(
    st.integers(1, 20),
    st.lists(st.floats(0, 30), min_size=1, max_size=80),
)
def test_no_minute_has_more_requests_than_the_limit_and_who_waits_gets_in(most: int, pauses: list[float]) -> None:
    limits, now, begun = KeyLimits(requests_per_minute=most), NOW, []
    for pause in pauses:
        now += pause
        refused = refusal(limits, begun, 0, now)
        if refused is not None:
            assert 1 <= refused.wait <= MINUTE
            now += refused.wait
            assert refusal(limits, begun, 0, now) is None
        begun.append(now)
        assert sum(now - MINUTE < each <= now for each in begun) <= most


@given(st.integers(1, 10**9), st.integers(0, 2 * 10**9), st.floats(0, 4e9))
def test_tokens_are_counted_by_the_day(most: int, used: int, now: float) -> None:
    refused = refusal(KeyLimits(tokens_per_day=most), [], used, now)
    assert (refused is None) == (used < most)
    if refused is not None:
        assert 1 <= refused.wait <= DAY
        assert day_of(now + refused.wait) != day_of(now)


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 50))
def test_sessions_at_once(most: int, there: int, more: int) -> None:
    refused = crowding(KeyLimits(sessions=most), there, more)
    assert (refused is None) == (there + more <= most)
    assert refused is None or (refused.wait == 0) == (more > most)
    assert crowding(KeyLimits(), there, more) is None


def test_a_clock_that_goes_back_locks_nobody_out() -> None:
    assert refusal(KeyLimits(requests_per_minute=1), [NOW + 1000], 0, NOW) is None


spans = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(
    lambda sizes: [(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
)


@given(spans, st.integers(1, 50), st.integers(1, 30))
def test_without_changes_every_block_has_computed_every_token_once(
    route: list[tuple[int, int]], prompt: int, new: int
) -> None:
    work = WorkRecord()
    share = work.share()
    share.routed(hop(f"server-{number}", start, end) for number, (start, end) in enumerate(route))
    for number in range(new):
        share.token(prompt + number)
    assert work.generated == new
    # The last token comes out and goes in nowhere.
    assert sum(work.by_server.values()) == route[-1][1] * (prompt + new - 1)


def test_who_takes_over_has_computed_all_of_it_and_who_stays_only_what_is_new() -> None:
    work = WorkRecord()
    share = work.share()
    share.routed(ROUTE)
    share.token(100)  # 100 tokens of prompt
    share.token(101)
    share.routed(OTHER_ROUTE)
    share.token(102)
    assert work.by_server == {HEAD: 10 * 102, TAIL: 20 * 101, SPARE: 20 * 102}
    share.routed([hop(HEAD, 0, 15), hop(SPARE, 15, 30)])
    share.token(103)
    assert work.by_server == {HEAD: 10 * 103 + 5 * 103, TAIL: 20 * 101, SPARE: 20 * 102 + 15}


def test_work_of_which_no_token_came_counts_for_nobody() -> None:
    work = WorkRecord()
    work.share().routed(ROUTE)
    assert (work.begun, work.by_server) == (False, {})


amounts = st.integers(0, 10**12)
asked = st.builds(Asked, st.sampled_from(["d1", "d2"]), st.integers(0, 2), st.sampled_from(["", "k"]), st.just("m"))


@given(st.lists(st.tuples(asked, amounts, amounts)))
def test_tallies_that_are_merged_hold_what_both_held(uses: list[tuple[Asked, int, int]]) -> None:
    whole, one, other = Tally(), Tally(), Tally()
    for number, (who, prompt, generated) in enumerate(uses):
        for tally in (whole, one if number % 2 else other):
            tally.add(who, 1, prompt, generated)
            tally.add_served(who.day, who.model, {"s": prompt}, {"s": "server"})
    one.merge(other)
    assert (one.used, one.served) == (whole.used, whole.served)
    assert one.tokens("d1", "k") == sum(p + g for who, p, g in uses if (who.day, who.key) == ("d1", "k"))


def test_a_caller_without_a_key_may_use_every_model() -> None:
    assert Principal().allows("any")

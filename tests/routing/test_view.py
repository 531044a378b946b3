"""A watcher's copy of the view, whatever gets lost on the way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routing import wire
from routing.view import Mirror, View, apply
from tests.routing.material import KEYS, server

keys = st.sampled_from(KEYS)
events: st.SearchStrategy[wire.Event] = st.one_of(
    st.builds(wire.MemberJoined, st.builds(wire.Member, keys, st.just(""), st.just(1.0))),
    st.builds(wire.ServerUpdated, st.builds(lambda key, free: server(key, kv_free=free), keys, st.integers(0, 3))),
    st.builds(
        wire.DirectoryListed, st.builds(wire.DirectoryInfo, keys, st.just(""), st.just(("host:1",)), st.just(1.0))
    ),
    st.builds(wire.PeerGone, keys, st.just("it left")),
    st.builds(wire.MemberExpelled, keys),
)


@given(st.lists(st.tuples(events, st.booleans()), max_size=40))
def test_a_feed_that_loses_changes_is_healed_by_the_next_that_arrives(feed: list[tuple[wire.Event, bool]]) -> None:
    view, sequence, request = View(), 0, 1
    mirror = Mirror()

    def watch() -> None:
        mirror.watch(request)
        parts = (
            wire.Snapshot(request, sequence, tuple(view.members.values()), ()),
            wire.Snapshot(request, sequence, (), tuple(view.servers.values()), tuple(view.expelled)),
            wire.Snapshot(request, sequence, (), (), (), tuple(view.directories.values())),
        )
        for message in (*parts, wire.Done(request)):
            mirror.receive(message)

    watch()
    for event, arrives in [*feed, (wire.PeerGone(KEYS[0], ""), True)]:
        view, sequence = apply(view, event), sequence + 1
        if arrives and mirror.receive(wire.Change(sequence, event)) == "gap":
            request += 1
            watch()
    assert mirror.view == view and mirror.complete

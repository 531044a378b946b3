"""The two faces of the library are one: the same names, the same arguments, one of them awaited."""

from __future__ import annotations

import inspect

import pytest

from swarm import AsyncClientSession, AsyncSwarmClient, ClientSession, SwarmClient

PAIRS = [(SwarmClient, AsyncSwarmClient), (ClientSession, AsyncClientSession)]


def public(face: type) -> set[str]:
    return {name for name in dir(face) if not name.startswith("_")}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_both_faces_have_the_same_members(one: type, other: type) -> None:
    assert public(one) == public(other) and len(public(one)) >= 8


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_every_method_takes_the_same_and_says_the_same(one: type, other: type) -> None:
    for name in public(one):
        blocking, awaited = getattr(one, name), getattr(other, name)
        if isinstance(blocking, property) or name in vars(one.__mro__[1]):
            assert blocking is awaited, f"{name} does not wait, so it belongs to what both share"
            continue
        assert inspect.signature(blocking).parameters == inspect.signature(awaited).parameters, name
        assert (blocking.__doc__ or "").split()[:3] == (awaited.__doc__ or "").split()[:3] != [], name
        if inspect.isgeneratorfunction(blocking):
            assert inspect.isasyncgenfunction(awaited), name
        else:
            assert inspect.iscoroutinefunction(awaited) or name == "session", name

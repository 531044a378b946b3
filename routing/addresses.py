"""Addresses: what others call this machine, and the addresses at which they reach a port of it."""

from __future__ import annotations

import ipaddress
import platform
import re
import socket
from collections.abc import Iterable, Sequence

import psutil

from routing.links import LinkError, split_address
from routing.relay.rules import is_relayed, parse_address

MOST = 16  # addresses of one peer, see `wire.Addresses`
_WELL_FORMED = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[\w.-]+):\d{1,5}", re.ASCII)


def machine() -> str:
    """Its name, without a domain."""
    return platform.node().partition(".")[0][:200] or "machine"


def is_dialable(address: str) -> bool:
    """Whether `Dialer` takes `address`: `host:port` or `[v6]:port`, or the way there through a router."""
    if is_relayed(address):
        return parse_address(address) is not None
    return _WELL_FORMED.fullmatch(address) is not None and 0 < int(address.rpartition(":")[2]) < 65536


def reachable(host: str, port: int, advertise: Sequence[str] = ()) -> tuple[str, ...]:
    """`host:port` of a listener as others may dial it, the best first.

    Args:
        host: what the listener is bound to; 0.0.0.0, :: or * stand for every address of this machine.
        advertise: the names that the user wants to be told instead, as HOST or HOST:PORT.

    Raises:
        LinkError: an advertised name cannot be dialled.
    """
    if advertise:
        told = [_with_port(name, port) for name in advertise]
    elif host in ("", "*", "0.0.0.0", "::"):
        told = [_join(address, port) for address in in_order(_own(with_v6=host in ("*", "::")), _preferred())]
    else:
        told = [_join(host, port)]
    if bad := [address for address in told if not is_dialable(address)]:
        raise LinkError(f"{bad[0]!r} is no address that others could dial: give HOST or HOST:PORT")
    return tuple(dict.fromkeys(told))[:MOST]


def in_order(addresses: Iterable[str], preferred: str = "") -> list[str]:
    """IP addresses in the order to try them: the preferred one, v4, v6, loopback. Link-local ones are left out."""
    parsed = {text: ipaddress.ip_address(text) for text in addresses}
    usable = [text for text, ip in parsed.items() if not (ip.is_link_local or ip.is_unspecified or ip.is_multicast)]
    return sorted(usable, key=lambda text: (parsed[text].is_loopback, text != preferred, parsed[text].version))


def _own(with_v6: bool) -> list[str]:
    families = (socket.AF_INET, socket.AF_INET6) if with_v6 else (socket.AF_INET,)
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return [
        entry.address.partition("%")[0]
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family in families
    ]


def _preferred() -> str:
    """The address that the way out of this network starts from, which virtual adapters do not have. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation, RFC 5737
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def _with_port(name: str, port: int) -> str:
    try:
        split_address(name)
    except LinkError:
        return _join(name, port)
    # A v6 address without brackets also splits into something and a number.
    return _join(name, port) if name.count(":") > 1 and not name.startswith("[") else name


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"

"""What others can make a program write to its log is bounded, and harmless to a terminal."""

from __future__ import annotations

import io
import logging

from swarm.system.logs import PrintableFormatter, RateLimitedFilter, printable


def logger(clock: list[float], burst: int = 3) -> tuple[logging.Logger, io.StringIO]:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    handler.addFilter(RateLimitedFilter(burst, 1.0, lambda: clock[0]))
    made = logging.Logger("test")
    made.addHandler(handler)
    return made, text


def test_a_flood_of_one_kind_leaves_room_for_the_others_and_is_summed_up() -> None:
    clock = [0.0]
    log, text = logger(clock)
    for number in range(1000):
        log.warning("dropped what %s sent", number)
    log.warning("the disk is full")
    clock[0] = 1.0
    log.warning("dropped what %s sent", "another")
    assert text.getvalue().splitlines() == [
        "dropped what 0 sent",
        "dropped what 1 sent",
        "dropped what 2 sent",
        "the disk is full",
        "dropped what another sent (and 997 more like this were left out)",
    ]


def test_nobody_writes_lines_or_moves_the_cursor_in_it() -> None:
    log, text = logger([0.0])
    log.warning("%s says: %s", "mallory", "\x1b[2J\n12:00:00 all is well\r")
    assert text.getvalue() == "mallory says: \\x1b[2J\\n12:00:00 all is well\\r\n"
    assert printable("Zürich, 東京") == "Zürich, 東京"


def test_a_traceback_keeps_its_lines() -> None:
    log, text = logger([0.0])
    try:
        raise ValueError("bad\x1bvalue")
    except ValueError:
        log.exception("failed")
    lines = text.getvalue().splitlines()
    assert lines[0] == "failed" and lines[1].startswith("Traceback") and lines[-1] == "ValueError: bad\\x1bvalue"

"""Server-sent events arrive whole, however the network cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.gateway.upstream.events import MOST_LINES, EventParser, EventTooLongError

DATA = st.text(st.characters(exclude_characters="\r\n\x00", exclude_categories=["Cs"]), max_size=30)
END = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Return a stream as servers may write it, and the data of its events."""
    end = draw(END)
    text = draw(st.sampled_from(["", "\ufeff"]))
    expected: list[bytes] = []
    for _ in range(draw(st.integers(0, 6))):
        lines = draw(st.lists(DATA, max_size=3))
        for noise in draw(
            st.lists(st.sampled_from([": ping", "event: message", "id: 7", "retry", ":"]), max_size=2)
        ):
            text += noise + end
        for line in lines:
            text += (
                draw(st.sampled_from(["data: ", "data:"]))
                + (line if not line.startswith(" ") else "." + line)
                + end
            )
        text += end
        if lines:
            expected.append(
                "\n".join(("." + line) if line.startswith(" ") else line for line in lines).encode()
            )
    return text.encode(), expected


@given(streams(), st.data())
def test_any_cutting_gives_the_same_events(stream: tuple[bytes, list[bytes]], data: st.DataObject) -> None:
    raw, expected = stream
    places = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=20)))
    parser = EventParser()
    found: list[bytes] = []
    for start, end in zip([0, *places], [*places, len(raw)], strict=True):
        found += parser.feed(raw[start:end])
    found += parser.finish()
    assert found == expected


@given(st.lists(st.binary(max_size=40)))
def test_garbage_never_breaks_the_parser_and_cutting_does_not_matter(pieces: list[bytes]) -> None:
    cut, whole = EventParser(), EventParser()
    one_by_one = [event for piece in pieces for event in cut.feed(piece)] + cut.finish()
    at_once = whole.feed(b"".join(pieces)) + whole.finish()
    assert one_by_one == at_once


def test_an_event_is_there_as_soon_as_its_empty_line_is() -> None:
    parser = EventParser()
    assert parser.feed(b"data: 1\n") == []
    assert parser.feed(b"\n") == [b"1"]
    assert parser.feed(b"data: 2\r\n\r\n") == [b"2"]
    assert parser.feed(b"data: 3\r\r") == [b"3"]


def test_the_end_of_the_stream_ends_an_event() -> None:
    parser = EventParser()
    assert parser.feed(b"data: [DONE]") == []
    assert parser.finish() == [b"[DONE]"]


def _feed_again_and_again(parser: EventParser, piece: bytes, times: int = 20) -> None:
    for _ in range(times):
        parser.feed(piece)


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 50, b"data: 12345678\n", b":" + b"x" * 200])
def test_an_event_or_line_beyond_the_bound_is_refused(piece: bytes) -> None:
    parser = EventParser(max_bytes=100)
    with pytest.raises(EventTooLongError):
        _feed_again_and_again(parser, piece)


def test_a_server_that_works_for_long_may_say_so_now_and_then() -> None:
    parser = EventParser()
    for _ in range(MOST_LINES // 2 - 1):
        assert parser.feed(b": keep-alive\n\n") == []
    assert parser.feed(b"data: 1\n\n") == [b"1"]
    for _ in range(MOST_LINES // 2 - 1):
        assert parser.feed(b": keep-alive\n\n") == []


@pytest.mark.parametrize("flood", [b"\n", b"\r\n", b"\r", b":\n", b": x\n\n", b"id: 1\n", b"data:\n"])
@pytest.mark.parametrize("lines_at_once", [1, 7, 1 << 20])
def test_lines_without_end_between_two_events_are_refused(flood: bytes, lines_at_once: int) -> None:
    parser = EventParser()
    assert parser.feed(b"data: 1\n\n") == [b"1"]
    with pytest.raises(EventTooLongError):
        _feed_again_and_again(parser, flood * lines_at_once, 2 * MOST_LINES // lines_at_once + 1)


def test_long_comments_without_end_are_refused() -> None:
    parser = EventParser(max_bytes=1000)
    with pytest.raises(EventTooLongError):
        _feed_again_and_again(parser, b":" + b"x" * 99 + b"\n\n")

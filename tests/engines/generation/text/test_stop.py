"""Stop strings: where the text ends, and what may be shown before it does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.engines.generation.text.stop import StopMatcher

PIECES = st.lists(st.text("abc", max_size=4), max_size=12)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4).map(tuple)


def reference(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, str | None]:
    """Look at the whole text after every piece."""
    text = ""
    for piece in pieces:
        text += piece
        found = [(text.index(stop), order) for order, stop in enumerate(stops) if stop in text]
        if found:
            start, order = min(found)
            return text[:start], stops[order]
    return text, None


@given(STOPS, PIECES)
def test_the_text_ends_where_looking_at_all_of_it_says(stops: tuple[str, ...], pieces: list[str]) -> None:
    matcher = StopMatcher(stops)
    text, matched = "", None
    for piece in pieces:
        final, matched = matcher.push(piece)
        text += final
        if matched is not None:
            break
    if matched is None:
        text += matcher.flush()
    assert (text, matched) == reference(stops, pieces)


@given(STOPS, PIECES)
def test_only_a_possible_start_of_a_stop_string_is_held_back(
    stops: tuple[str, ...], pieces: list[str]
) -> None:
    matcher = StopMatcher(stops)
    seen = shown = ""
    for piece in pieces:
        final, matched = matcher.push(piece)
        if matched is not None:
            return
        seen, shown = seen + piece, shown + final
        proper = [s[:n] for s in stops for n in range(1, len(s)) if seen.endswith(s[:n])]
        assert seen[len(shown) :] == max(proper, key=len, default="")


def test_the_earliest_start_wins_and_ties_go_by_order() -> None:
    assert StopMatcher(("c", "ab")).push("xabc") == ("x", "ab")
    assert StopMatcher(("ab", "abc")).push("xabc") == ("x", "ab")
    assert StopMatcher(("abc", "ab")).push("xabc") == ("x", "abc")


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert StopMatcher(()).push("text") == ("text", None)


def test_a_long_stop_string_that_almost_matches_again_and_again_stays_cheap() -> None:
    matcher = StopMatcher(("a" * 4000 + "b",))
    shown = sum(len(matcher.push("aaaa")[0]) for _ in range(2000))
    assert shown + len(matcher.flush()) == 8000


@given(STOPS, PIECES)
def test_with_the_stop_string_included_the_text_ends_behind_it(
    stops: tuple[str, ...], pieces: list[str]
) -> None:
    matcher = StopMatcher(stops, included=True)
    text, matched = "", None
    for piece in pieces:
        final, matched = matcher.push(piece)
        text += final
        if matched is not None:
            break
    if matched is None:
        text += matcher.flush()
    expected, stop = reference(stops, pieces)
    assert (text, matched) == (expected + (stop or ""), stop)


def test_without_a_search_nothing_matches_and_what_is_held_back_may_match_later() -> None:
    matcher = StopMatcher(("abc",))
    assert matcher.push("xabc", search=False) == ("xabc", None)
    assert matcher.push("ab", search=False) == ("", None)
    assert matcher.push("cd") == ("", "abc")

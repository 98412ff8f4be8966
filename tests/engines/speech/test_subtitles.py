"""Subtitle files hold whatever the segments hold."""

from __future__ import annotations

import html
import re

from hypothesis import given
from hypothesis import strategies as st

from appliance.engines.speech.contract import Segment
from appliance.engines.speech.subtitles import srt, vtt


def segment(start: float, end: float, text: str) -> Segment:
    return Segment(
        id=0,
        seek=0,
        start=start,
        end=end,
        text=text,
        tokens=[],
        temperature=0.0,
        avg_logprob=-0.1,
        compression_ratio=1.0,
        no_speech_prob=0.0,
    )


def test_srt_looks_as_players_expect() -> None:
    text = srt([segment(0, 1.5, " Hello <i>there</i>."), segment(3661.2345, 36000, " & bye")])

    assert text == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello <i>there</i>.\n\n2\n01:01:01,234 --> 10:00:00,000\n& bye\n"
    )


def test_vtt_looks_as_players_expect() -> None:
    text = vtt([segment(0, 1.5, " Hello <i>there</i>."), segment(3661.2345, 36000, " & bye")])

    assert text == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello &lt;i&gt;there&lt;/i&gt;.\n\n"
        "01:01:01.234 --> 10:00:00.000\n&amp; bye\n"
    )


def test_nothing_said() -> None:
    assert srt([]) == ""
    assert vtt([]) == "WEBVTT\n"


SPOKEN = st.text(min_size=1).filter(lambda text: text.split() != [])
CUES = st.lists(st.tuples(st.floats(0, 400_000), st.floats(0, 400_000), SPOKEN), max_size=8)
TIME = r"(\d{2,}):([0-5]\d):([0-5]\d)[.,](\d{3})"


def seconds(text: str) -> float:
    match = re.fullmatch(TIME, text)
    assert match is not None, text
    hours, minutes, whole, milliseconds = (int(part) for part in match.groups())
    return hours * 3600 + minutes * 60 + whole + milliseconds / 1000


@given(CUES)
def test_srt_can_be_read_back(cues: list[tuple[float, float, str]]) -> None:
    blocks = srt([segment(*cue) for cue in cues]).rstrip("\n").split("\n\n") if cues else []

    assert len(blocks) == len(cues)
    for number, (block, (start, end, text)) in enumerate(zip(blocks, cues, strict=True), 1):
        index, times, spoken = block.split("\n")
        assert index == str(number)
        first, last = times.split(" --> ")
        assert abs(seconds(first) - start) <= 0.0006
        assert abs(seconds(last) - end) <= 0.0006
        assert spoken == " ".join(text.split()).replace("-->", "->")
        assert "-->" not in spoken


@given(CUES)
def test_vtt_can_be_read_back(cues: list[tuple[float, float, str]]) -> None:
    header, *blocks = vtt([segment(*cue) for cue in cues]).rstrip("\n").split("\n\n")

    assert header == "WEBVTT"
    assert len(blocks) == len(cues)
    for block, (start, end, text) in zip(blocks, cues, strict=True):
        times, spoken = block.split("\n")
        first, last = times.split(" --> ")
        assert abs(seconds(first) - start) <= 0.0006
        assert abs(seconds(last) - end) <= 0.0006
        assert not set("<>") & set(spoken)
        plain = " ".join(text.split()).replace("-->", "->")
        if "&" not in plain:
            assert html.unescape(spoken) == plain

"""Write segments as subtitle files: SubRip (srt) and WebVTT (vtt)."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.engines.speech.contract import Segment


def srt(segments: Iterable[Segment]) -> str:
    """Return the segments as SubRip: numbered cues with a decimal comma in the times."""
    cues = [
        f"{number}\n{_time(segment.start, ',')} --> {_time(segment.end, ',')}\n{_cue_text(segment.text)}\n"
        for number, segment in enumerate(segments, 1)
    ]
    return "\n".join(cues)


def vtt(segments: Iterable[Segment]) -> str:
    """Return the segments as WebVTT, its mark-up characters escaped."""
    cues = [
        f"{_time(segment.start, '.')} --> {_time(segment.end, '.')}\n{_escape(_cue_text(segment.text))}\n"
        for segment in segments
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _time(seconds: float, point: str) -> str:
    """Return ``HH:MM:SS`` and milliseconds; hours take more digits where they need them."""
    milliseconds = max(0, round(seconds * 1000))
    rest, milliseconds = divmod(milliseconds, 1000)
    minutes, whole = divmod(rest, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{milliseconds:03}"


def _cue_text(text: str) -> str:
    """Return the text on one line, for an empty line ends a cue, and without the arrow that starts one."""
    return " ".join(text.split()).replace("-->", "->")


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

"""faster-whisper, greedy, int8, from a local folder.

Option ``model``: a folder in CTranslate2's format; ``threads``. Request: ``path`` of an audio file.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    """Answer requests until the input ends."""
    from importlib.metadata import version

    import faster_whisper

    options = json.loads(sys.argv[1])
    model = faster_whisper.WhisperModel(
        options["model"], device="cpu", compute_type="int8", cpu_threads=options["threads"], num_workers=1
    )
    shown = f"faster-whisper {version('faster-whisper')} (CTranslate2 {version('ctranslate2')})"
    print(json.dumps({"version": shown}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        segments, _ = model.transcribe(request["path"], language="en", beam_size=1, vad_filter=False)
        text = "".join(segment.text for segment in segments)
        print(json.dumps({"seconds": time.perf_counter() - started, "text": text}), flush=True)


if __name__ == "__main__":
    main()

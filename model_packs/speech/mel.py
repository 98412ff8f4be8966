"""The mel filter bank that Whisper was trained with: Slaney's scale and area normalisation.

The scale is linear to 1 kHz (200/3 Hz a mel) and logarithmic above (a factor 6.4 in 27 steps), after
M. Slaney, Auditory Toolbox (1998); each triangle is divided by its width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
FFT_SIZE = 400

_LINEAR_STEP = 200.0 / 3
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_STEP
_LOG_STEP = np.log(6.4) / 27.0


def _to_hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (mels - _BREAK_MEL))
    return np.where(mels >= _BREAK_MEL, logarithmic, mels * _LINEAR_STEP)


def mel_filters(bands: int) -> NDArray[np.float32]:
    """Return the filters, float32 of shape [bands, FFT_SIZE // 2 + 1], for 0 to 8 kHz."""
    bins = np.fft.rfftfreq(FFT_SIZE, 1.0 / SAMPLE_RATE)
    highest_mel = _BREAK_MEL + np.log(SAMPLE_RATE / 2 / _BREAK_HZ) / _LOG_STEP
    edges = _to_hz(np.linspace(0.0, highest_mel, bands + 2))
    widths = np.diff(edges)
    slopes = edges[:, None] - bins[None, :]
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    triangles *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return triangles

"""The few functions of whisper.cpp that the engine drives, called through ctypes in the worker.

The library is the one inside the pywhispercpp wheel. Its Python binding is not used for decoding: it
throws return codes away, holds the interpreter lock while it detects a language, and reads the
no-speech probability from the wrong position on multilingual models. The C functions used here have
had the same signatures for years; the one structure passed to them is checked against the library's
own defaults before the first use. A call releases the interpreter lock, so that a job can be
cancelled between two of them. Nothing here is safe from two threads at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.engines.errors import EngineError
from appliance.engines.speech.contract import SAMPLE_RATE

logger = logging.getLogger(__name__)

_LEVELS = {3: logging.WARNING, 4: logging.ERROR}
_MAX_ERRORS = 10
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
MIN_SECONDS = 0.1


class _ContextParams(ctypes.Structure):
    """``struct whisper_context_params`` of libwhisper 1.8."""

    _fields_ = (
        ("use_gpu", ctypes.c_bool),
        ("flash_attn", ctypes.c_bool),
        ("gpu_device", ctypes.c_int),
        ("dtw_token_timestamps", ctypes.c_bool),
        ("dtw_aheads_preset", ctypes.c_int),
        ("dtw_n_top", ctypes.c_int),
        ("dtw_n_heads", ctypes.c_size_t),
        ("dtw_heads", ctypes.c_void_p),
        ("dtw_mem_size", ctypes.c_size_t),
    )


# name: (result, arguments after the context)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "whisper_free": (None, ()),
    "whisper_pcm_to_mel": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)),
    "whisper_encode": (ctypes.c_int, (ctypes.c_int, ctypes.c_int)),
    "whisper_decode": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int)),
    "whisper_get_logits": (ctypes.c_void_p, ()),
    "whisper_tokenize": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)),
    "whisper_token_to_str": (ctypes.c_char_p, (ctypes.c_int,)),
    "whisper_token_lang": (ctypes.c_int, (ctypes.c_int,)),
    "whisper_n_vocab": (ctypes.c_int, ()),
    "whisper_n_text_ctx": (ctypes.c_int, ()),
    "whisper_is_multilingual": (ctypes.c_int, ()),
} | {
    f"whisper_token_{name}": (ctypes.c_int, ())
    for name in ("eot", "sot", "solm", "prev", "nosp", "not", "beg", "translate", "transcribe")
}


def _open_library() -> Any:
    import _pywhispercpp

    # dlsym on the extension's handle also searches the libraries it is linked to, wherever they lie.
    library = ctypes.CDLL(_pywhispercpp.__file__)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, (ctypes.c_void_p, *arguments)
    library.whisper_log_set.restype = None
    library.whisper_log_set.argtypes = (_LOG_CALLBACK, ctypes.c_void_p)
    library.whisper_context_default_params_by_ref.restype = ctypes.POINTER(_ContextParams)
    library.whisper_context_default_params_by_ref.argtypes = ()
    library.whisper_free_context_params.restype = None
    library.whisper_free_context_params.argtypes = (ctypes.POINTER(_ContextParams),)
    library.whisper_init_from_file_with_params.restype = ctypes.c_void_p
    library.whisper_init_from_file_with_params.argtypes = (ctypes.c_char_p, _ContextParams)
    return library


# What the library called an error since the list was last cleared.
_errors: list[str] = []


def _log(level: int, text: bytes | None, _user_data: int | None) -> None:
    if level in _LEVELS and text:
        line = text.decode("utf-8", "replace").rstrip()
        logger.log(_LEVELS[level], "whisper.cpp: %s", line)
        if _LEVELS[level] == logging.ERROR and len(_errors) < _MAX_ERRORS:
            _errors.append(line)


@contextlib.contextmanager
def errors_said() -> Iterator[list[str]]:
    """Give a list that fills with what whisper.cpp calls an error meanwhile; a model must have been loaded.

    The only way to tell, through its Python binding, that a function gave a null pointer.
    """
    _errors.clear()
    yield _errors


# Kept for as long as the library may call it.
_log_callback = _LOG_CALLBACK(_log)


def _default_params(library: Any) -> _ContextParams:
    """Return the library's defaults; raises EngineError when they are not where they are expected."""
    pointer = library.whisper_context_default_params_by_ref()
    params = _ContextParams.from_buffer_copy(pointer.contents)
    library.whisper_free_context_params(pointer)
    seen = (params.gpu_device, params.dtw_token_timestamps, params.dtw_n_top, params.dtw_n_heads)
    if seen != (0, False, -1, 0) or not 0 < params.dtw_mem_size <= 1 << 40:
        raise EngineError("the installed whisper.cpp library has another layout than this engine knows")
    return params


class WhisperModel:
    """A loaded model with its single decoding state.

    The file must have been checked before: whisper.cpp does not survive a corrupt one. Every method
    raises EngineError when the library reports a failure.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        self._library = _open_library()
        self._library.whisper_log_set(_log_callback, None)
        params = _default_params(self._library)
        params.use_gpu = False
        self._context: int | None = self._library.whisper_init_from_file_with_params(
            str(path).encode("utf-8"), params
        )
        if not self._context:
            raise EngineError("whisper.cpp could not load the model file")
        self._threads = threads
        self.n_vocab = self._number("whisper_n_vocab")
        self.n_text_ctx = self._number("whisper_n_text_ctx")
        self.multilingual = bool(self._number("whisper_is_multilingual"))
        self.eot = self._number("whisper_token_eot")
        self.sot = self._number("whisper_token_sot")
        self.solm = self._number("whisper_token_solm")
        self.prev = self._number("whisper_token_prev")
        self.nosp = self._number("whisper_token_nosp")
        self.no_timestamps = self._number("whisper_token_not")
        self.timestamp_begin = self._number("whisper_token_beg")
        self.translate = self._number("whisper_token_translate")
        self.transcribe = self._number("whisper_token_transcribe")
        # One language token for each language, between start-of-transcript and the task tokens.
        self.n_languages = self.translate - self.sot - 1 if self.multilingual else 1

    def _number(self, name: str) -> int:
        function: Callable[[int | None], int] = getattr(self._library, name)
        return function(self._context)

    def close(self) -> None:
        """Free the model."""
        context, self._context = self._context, None
        if context:
            self._library.whisper_free(context)

    def language_token(self, index: int) -> int:
        """Return the token of the language at ``index`` of Whisper's table."""
        return int(self._library.whisper_token_lang(self._context, index))

    def token_bytes(self, token: int) -> bytes:
        """Return a token's text; one token may hold part of a character."""
        return bytes(self._library.whisper_token_to_str(self._context, token) or b"")

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of ``text``."""
        encoded = text.encode("utf-8", "replace").replace(b"\0", b" ")
        # Every token stands for at least one byte.
        buffer = (ctypes.c_int * (len(encoded) + 1))()
        count = self._library.whisper_tokenize(self._context, encoded, buffer, len(buffer))
        if count < 0:
            raise EngineError("whisper.cpp could not tokenize the prompt")
        return list(buffer[:count])

    def encode(self, samples: NDArray[np.float32]) -> None:
        """Run the encoder on up to 30 s of mono samples at 16 kHz in [-1, 1], finite, at least MIN_SECONDS long."""
        if samples.dtype != np.float32 or samples.ndim != 1 or samples.size < MIN_SECONDS * SAMPLE_RATE:
            raise EngineError("the encoder takes mono float32 samples")
        data = np.ascontiguousarray(samples)
        mel = self._library.whisper_pcm_to_mel(self._context, data.ctypes.data, data.size, self._threads)
        if mel != 0:
            raise EngineError("whisper.cpp could not compute the spectrogram")
        if self._library.whisper_encode(self._context, 0, self._threads) != 0:
            raise EngineError("whisper.cpp's encoder failed")

    def decode(self, tokens: list[int], position: int) -> NDArray[np.float32]:
        """Run the decoder on ``tokens`` at ``position`` and return the last one's logits.

        What was decoded before ``position`` stays; the logits, float32 of shape [n_vocab], are a view
        that the next call overwrites.
        """
        if not tokens or position + len(tokens) > self.n_text_ctx:
            raise EngineError("the decoder's context is full")
        buffer = (ctypes.c_int * len(tokens))(*tokens)
        if self._library.whisper_decode(self._context, buffer, len(tokens), position, self._threads) != 0:
            raise EngineError("whisper.cpp's decoder failed")
        address = self._library.whisper_get_logits(self._context)
        # The library keeps a row for every token of the batch and fills the last.
        address += (len(tokens) - 1) * self.n_vocab * ctypes.sizeof(ctypes.c_float)
        row = (ctypes.c_float * self.n_vocab).from_address(address)
        return np.ctypeslib.as_array(row)

"""A confined worker makes callbacks for C libraries, also where writable memory may never be executed."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
from appliance.workers.protocol import Limits
from appliance.workers.sandbox import confine

PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
zero = ctypes.c_ulong(0)
if ctypes.CDLL(None).prctl(PR_SET_MDWE, ctypes.c_ulong(REFUSE_EXEC_GAIN), zero, zero, zero) != 0:
    print("unknown")
    sys.exit()
confine(Limits())
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int)
print(sum(callback() for callback in [CALLBACK(lambda: 7) for _ in range(50)]))
"""


def test_callbacks_need_no_memory_that_is_writable_and_executable() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    if result.stdout == "unknown\n":
        pytest.skip("this kernel cannot refuse such memory (PR_SET_MDWE)")
    assert result.stdout == "350\n", result.stderr

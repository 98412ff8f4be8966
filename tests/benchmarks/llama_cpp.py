"""The peer for generation: llama.cpp's own server, built here from the source archive of llama-cpp-python.

Built once, for this machine (``-march=native``), with clang where there is one: gcc 12 miscompiles
the AMX kernels, and such a build crashes. clang names the AMX macros otherwise before version 15, and
llama.cpp would then leave its AMX kernels out without a word: they are defined here, and a server that
lacks the kernels on a processor that has AMX is refused. The tools are kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from model_packs.cache import default_cache, locked
from model_packs.fetch import fetch_package
from model_packs.recipe import PackageSource

SOURCE = PackageSource(
    package="llama-cpp-python",
    version="0.3.36",
    filename="llama_cpp_python-0.3.36.tar.gz",
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    license="MIT",
    members={"llama.cpp": "llama_cpp_python-0.3.36/vendor/llama.cpp"},
)
TOOLS = ("llama-server", "llama-bench")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)
# clang 14 says __AMXINT8__ where gcc and later clangs say __AMX_INT8__, which is what llama.cpp asks for.
AMX_MACROS = {f"__AMX{kind}__": f"__AMX_{kind}__" for kind in ("TILE", "INT8", "BF16")}
# The ways to run the server: name -> flags. Its own default is flash attention, which reads long prompts
# faster (1.5 times, measured) and writes slower (a deep stream 2 times, 16 streams 1.7 times).
WAYS: dict[str, tuple[str, ...]] = {
    "llama.cpp": (),
    "llama.cpp -fa off": ("-fa", "off"),
    "llama.cpp --no-repack": ("--no-repack",),
}
BUILD_SECONDS = 3 * 3600
READY_SECONDS = 60


@dataclass(frozen=True)
class Tools:
    """The built programs and how they were built."""

    folder: Path
    description: str

    @property
    def server(self) -> Path:
        """The HTTP server."""
        return self.folder / "llama-server"


def built_tools(peer_environment: Path, jobs: int = 0) -> Tools:
    """Return llama.cpp's tools from the cache, building them first if need be (about 20 minutes of CPU time).

    ``peer_environment`` holds cmake and ninja; ``jobs`` = 0 means one per core. An interrupted build
    goes on where it stopped. Raises SourceError, CalledProcessError.
    """
    cache = default_cache()
    recipe = json.dumps([SOURCE.sha256, OPTIONS, AMX_MACROS])
    name = f"llama.cpp-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    target = cache / "bench" / name
    with locked(cache / "bench" / f".{name}.lock"):
        if not (target / "build.json").is_file():
            work = cache / "bench" / f".{name}"
            _build(work, peer_environment, jobs or len(os.sched_getaffinity(0)), cache)
            _keep(work, target)
    return Tools(target, json.loads((target / "build.json").read_text())["description"])


def _build(work: Path, peer_environment: Path, jobs: int, cache: Path) -> None:
    """Unpack, configure and compile in ``work``."""
    source = work / "source"
    if not source.is_dir():
        shutil.rmtree(work, ignore_errors=True)
        partial = work / "unpacked"
        partial.mkdir(parents=True)
        with tarfile.open(fetch_package(SOURCE, cache / "sources")) as archive:
            archive.extractall(partial, filter="data")
        (partial / SOURCE.filename.removesuffix(".tar.gz")).rename(source)
    binaries = peer_environment / "bin"
    c, cxx = ("clang", "clang++") if shutil.which("clang++") else ("cc", "c++")
    print(f"Building llama.cpp with {cxx} (once; minutes) ...", file=sys.stderr, flush=True)
    cmake, build = str(binaries / "cmake"), str(work / "build")
    flags = " ".join(_missing_macros(cxx))
    configure = [
        *(cmake, "-S", str(source / "vendor" / "llama.cpp"), "-B", build, "-G", "Ninja"),
        *(f"-DCMAKE_MAKE_PROGRAM={binaries / 'ninja'}", f"-DCMAKE_C_COMPILER={c}"),
        *(f"-DCMAKE_CXX_COMPILER={cxx}", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}", *OPTIONS),
    ]
    if not (work / "build" / "build.ninja").is_file():
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    compile_tools = [cmake, "--build", build, "-j", str(jobs), "--target", *TOOLS]
    subprocess.run(compile_tools, check=True, stdout=sys.stderr, timeout=BUILD_SECONDS)


def _missing_macros(compiler: str) -> list[str]:
    """Return the definitions of those AMX macros that ``compiler`` has under its own names alone."""
    command = [compiler, "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    known = {line.split()[1] for line in shown.splitlines()}
    return [f"-D{name}=1" for own, name in AMX_MACROS.items() if own in known and name not in known]


def _keep(work: Path, target: Path) -> None:
    """Move the tools to ``target`` with a note of how they were built, and drop the rest."""
    shutil.rmtree(target, ignore_errors=True)
    staging = work / "tools"
    staging.mkdir(exist_ok=True)
    for tool in TOOLS:
        shutil.copy2(work / "build" / "bin" / tool, staging / tool)
    kept = {"description": _description(work / "build"), "options": OPTIONS, "source": SOURCE.sha256}
    (staging / "build.json").write_text(json.dumps(kept))
    staging.rename(target)
    shutil.rmtree(work)


def _description(build: Path) -> str:
    """Return the compiler that made the tools and the kernels' target, in words."""
    cache = (build / "CMakeCache.txt").read_text().splitlines()
    compiler = next(line.partition("=")[2] for line in cache if line.startswith("CMAKE_CXX_COMPILER:"))
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    openmp = any(line.startswith("OpenMP_CXX_FLAGS:") and "NOTFOUND" not in line for line in cache)
    return f"{version.splitlines()[0]}, -march=native, {'with' if openmp else 'without'} OpenMP"


@dataclass(frozen=True)
class LlamaServer:
    """A running llama-server."""

    base_url: str
    pid: int
    version: str


@contextmanager
def running_llama_server(
    tools: Tools, model: Path, log: Path, *, threads: int, slots: int, context: int, flags: Sequence[str] = ()
) -> Iterator[LlamaServer]:
    """Serve the GGUF ``model`` with ``slots`` sequences of ``context`` tokens each; stop it at the end.

    Raises RuntimeError with the end of the log when it does not come up, or lacks the AMX kernels on a
    processor that has AMX: it would be another, much slower peer.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        *(str(tools.server), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)),
        *("-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c", str(slots * context)),
        # No copies of earlier prompts in memory beside those in the slots themselves.
        *("--cache-ram", "0", *flags),
        # Says at the start which kernels it has.
        *("-lv", "4"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        base_url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, base_url, log)
        if has_amx() and "AMX_INT8 = 1" not in log.read_text("utf-8", "replace"):
            raise RuntimeError("llama-server was built without its AMX kernels on a processor that has AMX")
        shown = subprocess.run([str(tools.server), "--version"], capture_output=True, text=True, check=True)
        version = (shown.stdout + shown.stderr).strip().splitlines()[0].removeprefix("version: ")
        yield LlamaServer(base_url, process.pid, version)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def has_amx() -> bool:
    """Return whether this processor has AMX for 8-bit integers."""
    return "amx_int8" in Path("/proc/cpuinfo").read_text().split()


def _wait_until_ready(process: subprocess.Popen[bytes], base_url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{base_url}/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"llama-server does not come up:\n{log.read_text('utf-8', 'replace')[-3000:]}")

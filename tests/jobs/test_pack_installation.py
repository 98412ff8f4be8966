"""The installation of a pack as a job."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import AsyncIterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.jobs.errors import JobError
from appliance.jobs.handlers import job_handlers
from appliance.jobs.pack_installation import KIND
from appliance.jobs.runner import JobRunner
from appliance.packs.archive import write_archive
from appliance.packs.store import PackStore
from appliance.signing.keys import SecretKey
from appliance.signing.signatures import Subject, sign_file
from appliance.storage.database import Database
from tests.packs.sample import contents, write_pack
from tests.signing.samples import Box

KEY = SecretKey.generate()


@pytest.fixture
async def runner(database: Database, tmp_path: Path) -> AsyncIterator[JobRunner]:
    trust = Box(tmp_path / "box", KEY).trust_dir
    settings = Settings(data_dir=tmp_path, egress_networks=("127.0.0.0/8",), trust_dir=trust)
    started = JobRunner(database, job_handlers(PackStore(settings.packs_dir), settings))
    started.start()
    yield started
    started.close()


async def test_installing_twice_is_installing_once(runner: JobRunner, tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", contents(1))
    for _ in range(2):
        number = await runner.submit(KIND, {"source": str(source)})
        assert await runner.wait(number) == {"name": "sample", "version": "1", "signed_by": None}
    assert PackStore(tmp_path / "packs").verify("sample").name == "sample"
    job = await runner.get(number)
    assert job.progress_done == job.progress_total > 0


async def test_a_bad_pack_fails_the_job_with_its_reason(runner: JobRunner, tmp_path: Path) -> None:
    (tmp_path / "bad.tar.zst").write_bytes(b"not a pack")
    number = await runner.submit(KIND, {"source": str(tmp_path / "bad.tar.zst"), "allow_unsigned": True})
    with pytest.raises(JobError, match="not compressed with Zstandard"):
        await runner.wait(number)
    assert PackStore(tmp_path / "packs").list() == ()


async def test_a_signed_pack_is_fetched_from_a_server_of_an_allowed_network(
    runner: JobRunner, tmp_path: Path
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    write_archive(write_pack(tmp_path / "source", contents(1)), share / "sample.tar.zst")
    shutil.copy(share / "sample.tar.zst", share / "unsigned.tar.zst")
    sign_file(share / "sample.tar.zst", KEY, Subject(name="sample", sequence=1, kind="pack"))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(share))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        number = await runner.submit(KIND, {"source": f"{url}/sample.tar.zst"})
        expected = {"name": "sample", "version": "1", "signed_by": KEY.public.id}
        assert await runner.wait(number) == expected
        unsigned = await runner.submit(KIND, {"source": f"{url}/unsigned.tar.zst"})
        with pytest.raises(JobError, match="not signed"):
            await runner.wait(unsigned)
        missing = await runner.submit(KIND, {"source": f"{url}/missing.tar.zst"})
        with pytest.raises(JobError, match="404"):
            await runner.wait(missing)
        server.shutdown()
    assert list((tmp_path / "spool").iterdir()) == []


async def test_a_server_elsewhere_is_refused(runner: JobRunner) -> None:
    number = await runner.submit(KIND, {"source": "http://192.0.2.1/sample.tar.zst"})
    with pytest.raises(JobError, match="egress policy"):
        await runner.wait(number)

"""The commands of docs/first-hour.md, run as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.service import Service

PAGE = Path(__file__).parent.parent / "docs/first-hour.md"
# Stands between the answers of the commands.
MARK = "-- the next block --"


def test_the_commands_of_the_first_hour_do_what_they_say(service: Service) -> None:
    setup, *blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    setup = setup.replace("http://127.0.0.1:8080", service.base_url).replace("sk-…", service.key)
    assert service.base_url in setup
    assert service.key in setup
    script = f"\necho; echo '{MARK}'\n".join([setup, *blocks])
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    _, priced, made, asked, seen, ended = run.stdout.split(MARK)

    assert not priced.strip()
    assert not made.strip()
    answer = json.loads(asked)
    assert answer["model"] == "gpt-4o-mini"
    user, usage, audit, *metrics = seen.strip().splitlines()
    assert json.loads(user)["budget"] == round(5 - answer["usage"]["cost"], 6) < 5
    assert json.loads(usage)["total"] == 1
    # Refused keys of other tests are written when their minute ends.
    actions = [line["action"] for line in json.loads(audit)["data"] if line["action"] != "key.refuse"]
    assert actions[0] == "key.create"
    assert any('router="smollm2-135m-instruct"' in line for line in metrics)
    assert not ended.strip()
    restore(service)


def restore(service: Service) -> None:
    """Take the name and the prices from the model again, and what was made."""
    with service.http as http:
        users = http.get("/v1/admin/users", params={"email": "ada@town.example"})
        assert users.status_code == 404
        for path, name in (("roles", "staff"), ("organizations", "Town hall")):
            found: list[dict[str, Any]] = http.get(f"/v1/admin/{path}", params={"limit": 100}).json()["data"]
            number = next(each["id"] for each in found if each["name"] == name)
            assert http.delete(f"/v1/admin/{path}/{number}").status_code == 204
        routers = http.get("/v1/admin/routers", params={"limit": 100}).json()["data"]
        number = next(each["id"] for each in routers if each["aliases"] == ["gpt-4o-mini"])
        body = {"aliases": [], "cost_prompt_tokens": 0, "cost_completion_tokens": 0}
        assert http.patch(f"/v1/admin/routers/{number}", json=body).status_code == 204

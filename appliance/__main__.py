"""``python -m appliance``, the ``appliance`` program, and every worker process of either."""

from __future__ import annotations

import multiprocessing
import sys

from appliance.frozen import restore_environment

WORKER_ARGUMENTS = 4  # worker KIND --fd N


def main() -> None:
    """Run a command. Workers take the short way: they must not load what they do not need."""
    multiprocessing.freeze_support()
    restore_environment()
    arguments = sys.argv[1:]
    if len(arguments) == WORKER_ARGUMENTS and arguments[0] == "worker" and arguments[2] == "--fd":
        from appliance.cli.worker import run_worker

        run_worker(arguments[1], int(arguments[3]))
        return
    from appliance.cli import command

    command(prog_name="appliance")


if __name__ == "__main__":
    main()

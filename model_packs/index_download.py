"""Stream one file of a package index to stdout; run as a script in a process of its own.

pip itself finds and fetches it, so its configuration (indexes, credentials, certificates, proxies)
holds here too, and no metadata is built as ``pip download`` would for a source archive. Uses pip's
internals of 23.0 to 26, which is why nothing else of the project is imported here.

Arguments: package, version, filename. Output: one line with the size (0 if unknown), then the bytes.
"""

from __future__ import annotations

import sys

from pip._internal.commands import create_command
from pip._internal.network.utils import HEADERS, raise_for_status, response_chunks


def main(package: str, version: str, filename: str) -> int:
    """Find ``filename`` among the distributions of ``package`` and write it out. Return 3 when it is not there."""
    command = create_command("download")
    # Formats are opened up again whatever the configuration says: the file is read, not installed.
    flags = [
        "--no-deps",
        "--no-input",
        "--no-cache-dir",
        "--no-binary=:none:",
        "--only-binary=:none:",
        "--pre",
    ]
    options, _ = command.parse_args([*flags, f"{package}=={version}"])
    with command.main_context():
        session = command.get_default_session(options)  # type: ignore[attr-defined]
        finder = command._build_package_finder(  # type: ignore[attr-defined]  # noqa: SLF001
            options=options, session=session, ignore_requires_python=True
        )
        links = [c.link for c in finder.find_all_candidates(package) if c.link.filename == filename]
        if not links:
            print(f"no index that pip is configured with has {filename}", file=sys.stderr)
            return 3
        response = session.get(links[0].url_without_fragment, headers=HEADERS, stream=True)
        raise_for_status(response)
        out = sys.stdout.buffer
        out.write(f"{int(response.headers.get('Content-Length') or 0)}\n".encode())
        for chunk in response_chunks(response, 1 << 18):
            out.write(chunk)
        out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))

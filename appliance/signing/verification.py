"""The check of a signed file, as a stream and before anything reads what is in it."""

from __future__ import annotations

from pathlib import Path

from appliance.signing.errors import SigningError
from appliance.signing.signatures import Kind, Progress, digest_file, parse_subject, read_signature
from appliance.signing.trust import TrustStore, Verified

_KINDS = {"system": "a system bundle", "pack": "a model pack", "revocation": "a trust list"}


def verify_file(
    path: Path,
    trust: TrustStore,
    *,
    name: str | None = None,
    kind: Kind | None = None,
    check_sequence: bool = True,
    progress: Progress | None = None,
) -> Verified:
    """Check the signature beside ``path`` over all its bytes, and that it is what is asked for.

    Raises SigningError, whose ``code`` says which: not signed, unknown or revoked key, damaged, another
    ``name`` or ``kind`` than asked for, older than what was accepted before (``check_sequence``).
    Nothing is recorded: ``TrustStore.accept`` does when the file is taken into use.
    """
    signature = read_signature(path)
    key = trust.key(signature.key_id, path.name)
    if not signature.vouches_for_comment(key):
        raise SigningError(
            "damaged", f"the signature of {path.name} was changed after it was made: get it again"
        )
    subject = parse_subject(signature.comment)
    if kind is not None and subject.kind != kind:
        raise SigningError(
            "wrong_name", f"{path.name} is {_KINDS[subject.kind]} ({subject.name}), not {_KINDS[kind]}"
        )
    if name is not None and subject.name != name:
        raise SigningError("wrong_name", f"{path.name} is {subject.name}, not {name}")
    if check_sequence:
        trust.check_sequence(subject, key.id)
    digest, size = digest_file(path, progress)
    if not signature.vouches_for(key, digest):
        raise SigningError(
            "damaged",
            f"{path.name} is damaged, or was changed after it was signed: copy it again, and get it anew if "
            "that does not help",
        )
    return Verified(
        name=subject.name,
        sequence=subject.sequence,
        kind=subject.kind,
        key_id=key.id,
        digest=digest,
        size=size,
    )

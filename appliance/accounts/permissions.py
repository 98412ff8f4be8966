"""What a role may allow, beyond calling models."""

from __future__ import annotations

from typing import Literal, get_args

Permission = Literal["admin", "create_public_collection", "read_metric", "provide_models"]

PERMISSIONS: tuple[Permission, ...] = get_args(Permission)

"""Who changed what: an append-only log whose every line vouches for all before it."""

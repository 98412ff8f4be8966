"""Which sequence runs when, in which rows of the KV cache."""

"""From a row of logits to a token and its numbers."""

"""Services that are killed in the middle of what they do."""

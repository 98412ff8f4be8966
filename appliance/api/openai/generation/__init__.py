"""Chat and text completions: the fields of a request, its choices, and the answer."""

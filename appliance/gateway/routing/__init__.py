"""Which router serves a name, and which of its providers takes a request."""

"""``make bench``: the service beside its peers, in one run, taking turns. See README.md in this folder."""

"""Constraints on an answer's text, checked and written anew for llguidance."""

"""Requests that another engine answers."""

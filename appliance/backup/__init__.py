"""Backups of the box: made while it serves, checked, kept for a time, restored and tried."""

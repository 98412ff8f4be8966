"""Texts that quality is measured on, written for this project and under its licence."""

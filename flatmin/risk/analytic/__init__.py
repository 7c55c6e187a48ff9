"""Risks with closed forms, where a chain of θs costs no network."""

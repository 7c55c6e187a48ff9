"""Resumable runs: what a file may hold, and whose run it is."""

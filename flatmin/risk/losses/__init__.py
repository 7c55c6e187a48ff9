"""Losses of single examples, and their Hessians in the output."""

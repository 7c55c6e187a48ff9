"""The examples of a risk: checked, held in memory or read a chunk at a time."""

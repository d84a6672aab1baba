"""Commands: one file each, parsing only."""

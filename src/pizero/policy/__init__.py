"""Policies: robot dictionary in, action chunk out, and how a chunk is played."""

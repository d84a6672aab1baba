"""FAST: action chunks as discrete tokens (arXiv 2501.09747)."""

"""Inference as fast as the machine allows, with the numbers of the plain path."""

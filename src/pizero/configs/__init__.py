"""Presets: one short function each."""

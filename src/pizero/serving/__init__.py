"""Policies over a network. `protocol` and `client` need NumPy, msgpack and websockets alone."""

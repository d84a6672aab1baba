"""Simulators behind one interface (`pizero.types.Env`), each with a scripted demonstrator."""

from pizero.envs.env import ENVS, make_env

__all__ = ["ENVS", "make_env"]

"""pizero's π0 and π0.5 as a policy of LeRobot, which imports this package by its name and finds the type "pizero"."""

from lerobot_policy_pizero.configuration_pizero import PizeroConfig

__all__ = ["PizeroConfig"]

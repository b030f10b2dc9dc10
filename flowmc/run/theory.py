"""From a ``[theory]`` table to an action: what :mod:`flowmc.actions.theory` offers to runs."""

from flowmc.actions.theory import build_action, check_couplings, describe_theory

__all__ = ["build_action", "check_couplings", "describe_theory"]

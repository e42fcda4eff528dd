"""Simulators behind dm_env's interface, chosen by name; each library is imported on first use."""

from offline_mbrl.environments.simulators import make, spec

__all__ = ["make", "spec"]

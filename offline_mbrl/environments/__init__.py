"""Simulators behind dm_env's interface, chosen by name; each library is imported on first use."""

from offline_mbrl.environments.simulators import make, reseed, spec

__all__ = ["make", "reseed", "spec"]

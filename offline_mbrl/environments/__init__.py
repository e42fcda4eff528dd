"""Simulators behind dm_env's interface, chosen by name; each library is imported on first use."""

from offline_mbrl.environments.simulators import has_success, make, reseed, spec, starts

__all__ = ["has_success", "make", "reseed", "spec", "starts"]

"""Simulators behind dm_env's interface, chosen by name; each library is imported on first use."""

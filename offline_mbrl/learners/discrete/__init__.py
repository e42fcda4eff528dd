"""Offline Q-learning with discrete actions."""

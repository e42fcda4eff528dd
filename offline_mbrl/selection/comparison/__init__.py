"""Policies beside each other and the logged behavior: who votes, and what follows."""

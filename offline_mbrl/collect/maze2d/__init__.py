"""Data of balls in mazes."""

"""Data of OGBench's environments by its own scripts."""

"""Processes: the worker that trains, and notebooks run from a terminal."""

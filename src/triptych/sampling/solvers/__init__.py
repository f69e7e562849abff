"""Solvers of the sampling equation: one file each. schedulers.py says which scheduler is which."""

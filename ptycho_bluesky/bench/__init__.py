"""Measurements with a machine-readable report."""

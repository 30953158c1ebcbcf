"""Measurements: what costs how much on this machine. Nothing here is run by the fast tests."""

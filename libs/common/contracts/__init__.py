"""The wire contracts: one model per event, and `registry.py`, which lists every topic as data."""

"""Evolutionary search over update rules."""

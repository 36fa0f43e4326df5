"""Measurements of this code itself, and the studies behind pages of docs/."""

"""How good a program is."""

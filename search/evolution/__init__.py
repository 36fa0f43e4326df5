"""Which programs become parents."""

"""Programs as text in other languages."""

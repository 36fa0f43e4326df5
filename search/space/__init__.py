"""What programs may look like, and how children are made of them."""

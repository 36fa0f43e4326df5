"""One training run, and the meta-training of learned optimizers."""

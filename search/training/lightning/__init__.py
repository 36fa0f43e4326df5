"""The Lightning engine: one trial on one device or many, with checkpoints, loggers and callbacks."""

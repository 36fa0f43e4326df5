"""Where work runs: this process, local processes, a Ray cluster."""

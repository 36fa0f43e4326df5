"""`python -m experiments.cli` is `optforge`."""

from experiments.cli.commands import main

if __name__ == "__main__":
    main()

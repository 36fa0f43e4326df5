"""`python -m experiments.cli` is `optforge`."""

from optforge.experiments.cli.commands import main

if __name__ == "__main__":
    main()

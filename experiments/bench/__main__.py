"""`python -m experiments.bench`: the suites of `make bench`."""

from optforge.experiments.bench.suites import main

if __name__ == "__main__":
    main()

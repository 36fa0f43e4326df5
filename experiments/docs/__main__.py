"""`python -m experiments.docs`: what `make docs` runs."""

from experiments.docs.language import main

if __name__ == "__main__":
    main()

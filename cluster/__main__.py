"""`python -m cluster` is `scout`."""

from cluster.cli import main

if __name__ == "__main__":
    main()

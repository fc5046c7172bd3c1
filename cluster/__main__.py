"""`python -m cluster` is `scout`."""

from cluster.cli.app import main

if __name__ == "__main__":
    main()

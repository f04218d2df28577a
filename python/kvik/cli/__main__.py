"""`python -m kvik.cli`."""

from kvik.cli.app import main

if __name__ == "__main__":
    main()

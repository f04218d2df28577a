"""`python -m kvik.cli`."""

from kvik.cli import main

if __name__ == "__main__":
    main()

"""`python -m kvik_train` is `kvik train`; this is the form that torchrun starts."""

from kvik_train.cli import main

if __name__ == "__main__":
    main()

"""The Kvik engine. Use it through the package kvik."""



def version() -> str:
    """The version of the engine, e.g. "0.1.0"."""

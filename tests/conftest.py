"""What every test relies on."""

import signal


def pytest_configure() -> None:
    # A shell ignores SIGINT in what it runs in the background, and programs inherit that: those
    # that the tests interrupt would run for ever.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

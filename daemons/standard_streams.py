"""Standard input, output and error where whoever started the program closed them."""

import os
import sys


def reserve_standard_streams() -> None:
    """Put /dev/null where one is closed.

    Otherwise the next file or socket that is opened gets its number: then a message on standard
    error would go into a database, and the event loop aborts the process.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one.
            opened = os.open(os.devnull, os.O_RDWR)
            assert opened == number, (opened, number)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115

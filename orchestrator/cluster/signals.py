"""Signals that end a command: the first one asks, the second one ends."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

STOP = (signal.SIGTERM, signal.SIGINT)


def interrupt(number: int) -> None:
    """What a second signal does unless told otherwise: the command unwinds, as after Ctrl-C."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def ask_once(
    ask: Callable[[int], None], again: Callable[[int], None] = interrupt, numbers: Sequence[int] = STOP
) -> Iterator[None]:
    """Meanwhile the first of these signals calls `ask` with its number, and every later one `again`.

    Python leaves signals to the main thread: in any other nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def handle(number: int, _frame: Any) -> None:
        if came:
            return again(number)
        came.append(number)
        return ask(number)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

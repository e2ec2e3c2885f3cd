"""Storing a checkpoint while training goes on: the state is copied to local files first, a thread does the rest."""

import threading
from collections.abc import Callable


class BackgroundSaver:
    """Stores one checkpoint at a time. What goes wrong in the thread is raised by the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, store: Callable[[], None]) -> None:
        """Run `store` beside training, after what is still being stored is done."""
        self.wait()

        def work() -> None:
            try:
                store()
            except BaseException as error:  # raised where the training loop can hear it
                self._error = error

        # A daemon: a worker that ends with an error of training does not first finish an upload.
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong; costs nothing."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until everything is stored."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

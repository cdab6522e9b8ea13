"""Replace the serving model without a restart: load its successor in the background."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("pleura.analyse")

_Model = TypeVar("_Model")


class Succession(Generic[_Model]):
    """A model's successor: a reload asks for it, a thread loads it, the worker takes it."""

    def __init__(
        self,
        make: Callable[[], _Model],
        name: Callable[[_Model], str],
        refusals: tuple[type[Exception], ...],
    ) -> None:
        """`make` returns a model that is ready to serve, or raises one of `refusals`.

        A refusal's message is logged for the operator. `name` identifies a model.
        """
        self._make = make
        self._name = name
        self._refusals = refusals

        # Why the package that was read last cannot serve, for `pleura status`; "" if it can.
        self.trouble = ""

        self._asked = False
        self._made: _Model | None = None
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Load the package again at the next `take`. Safe in a signal handler."""
        self._asked = True

    def confirm(self) -> None:
        """The package on disk is the one that serves, such as after it was put back."""
        self.trouble = ""

    @property
    def pending(self) -> bool:
        """Whether a successor was asked for and has not been taken yet."""
        return self._asked or self._thread is not None

    def take(self, serving: _Model) -> _Model | None:
        """The successor of `serving` once it is loaded, otherwise None. Call it between claims."""
        if self._thread is None:
            if self._asked:
                self._asked = False
                self._thread = self._begin(serving)
            return None
        if self._thread.is_alive():
            return None

        made = self._made
        self._made = None
        self._thread = None
        # Frees the weights of a model that was refused.
        gc.collect()

        if made is not None:
            log.info(
                "the model in service is now %s, no longer %s",
                self._name(made),
                self._name(serving),
            )
        return made

    def close(self) -> None:
        """Wait until no model is being loaded."""
        if self._thread is not None:
            self._thread.join()

    def _begin(self, serving: _Model) -> threading.Thread:
        log.info(
            "the model package is read again; %s goes on serving meanwhile", self._name(serving)
        )
        thread = threading.Thread(
            target=self._load, args=(serving,), name="succession", daemon=True
        )
        thread.start()
        return thread

    def _load(self, serving: _Model) -> None:
        """Load the successor. `take` hands it over when this thread has ended."""
        try:
            made = self._make()
        except self._refusals as error:
            self.trouble = str(error)
            log.error(
                "the new model cannot serve: %s; %s goes on serving", error, self._name(serving)
            )
        except Exception as error:
            self.trouble = f"{type(error).__name__}; the log says more"
            log.exception("the new model cannot serve; %s goes on serving", self._name(serving))
        else:
            self.trouble = ""
            if self._name(made) == self._name(serving):
                log.info("the model package has not changed")
            else:
                self._made = made

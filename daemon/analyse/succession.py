"""A changed model is made ready beside the one that serves, which goes on until its successor has shown that it can."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("pleura.analyse")

_Model = TypeVar("_Model")


class Succession(Generic[_Model]):
    """Asked for by a signal, made in a thread of its own, taken between two claims."""

    def __init__(
        self,
        make: Callable[[], _Model],
        name: Callable[[_Model], str],
        refusals: tuple[type[Exception], ...],
    ) -> None:
        """`make` gives a model that is ready to serve, or raises one of `refusals`, whose text is for the operator.

        `name` tells one from another.
        """
        self._make, self._name, self._refusals = make, name, refusals
        self._asked = False
        self._made: _Model | None = None
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Look at the package again. May be called by a signal handler."""
        self._asked = True

    @property
    def pending(self) -> bool:
        """Whether what was asked for is still to come."""
        return self._asked or self._thread is not None

    def take(self, serving: _Model) -> _Model | None:
        """The successor of `serving`, once it is ready; None otherwise."""
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            made, self._made, self._thread = self._made, None, None
            gc.collect()  # the weights of whom is not needed
            if made is not None:
                log.info(
                    "the model in service is now %s, no longer %s",
                    self._name(made),
                    self._name(serving),
                )
            return made
        if self._asked:
            self._asked = False
            log.info(
                "the model package is read again; %s goes on serving meanwhile", self._name(serving)
            )
            self._thread = threading.Thread(
                target=self._load, args=(serving,), name="succession", daemon=True
            )
            self._thread.start()
        return None

    def close(self) -> None:
        """Return when nothing is being made any more."""
        if self._thread is not None:
            self._thread.join()

    def _load(self, serving: _Model) -> None:
        try:
            made = self._make()
        except self._refusals as error:
            log.error(
                "the new model cannot serve: %s; %s goes on serving", error, self._name(serving)
            )
        except Exception:
            log.exception("the new model cannot serve; %s goes on serving", self._name(serving))
        else:
            if self._name(made) == self._name(serving):
                log.info("the model package has not changed")
            else:
                self._made = made

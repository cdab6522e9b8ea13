"""A changed model is made ready beside the serving model, which goes on until then."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("pleura.analyse")

_Model = TypeVar("_Model")


class Succession(Generic[_Model]):
    """A model's successor: asked for by a signal, made in a thread, taken between two claims."""

    def __init__(
        self,
        make: Callable[[], _Model],
        name: Callable[[_Model], str],
        refusals: tuple[type[Exception], ...],
    ) -> None:
        """`make` gives a model that is ready to serve, or raises one of `refusals`.

        The text of a refusal is for the operator. `name` tells models apart.
        """
        self._make = make
        self._name = name
        self._refusals = refusals

        self._asked = False
        self._made: _Model | None = None
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Look at the package again. May be called by a signal handler."""
        self._asked = True

    @property
    def pending(self) -> bool:
        """Whether a successor was asked for and is not ready yet."""
        return self._asked or self._thread is not None

    def take(self, serving: _Model) -> _Model | None:
        """The successor of `serving`, once it is ready; None otherwise."""
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            made = self._made
            self._made = None
            self._thread = None
            # Frees the weights of a model that is not taken.
            gc.collect()
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
        """Return when no model is being made any more."""
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

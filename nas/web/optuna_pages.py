"""optuna-dashboard inside ours, for what it draws already: history, importance of genes, parallel coordinates, tables.

It has no password, no token, no check of hosts and no mode for reading alone, so all of that is done before it is
asked. Its front-end knows absolute addresses only, which are therefore kept free of our own.
"""

import importlib.util
import threading
from collections.abc import Callable, Iterable
from typing import Any

from optuna.storages import BaseStorage

# Where its pages, its calls and its files are.
OWN_PATHS = ("dashboard", "api", "static", "csv", "artifacts", "favicon.ico")

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def is_installed() -> bool:
    """Whether optuna-dashboard is there; it comes with the extra `dashboard`."""
    return importlib.util.find_spec("optuna_dashboard") is not None


class OptunaPages:
    """The application of optuna-dashboard over whatever storage is the right one now."""

    def __init__(self, storage: Callable[[], BaseStorage]) -> None:
        self._storage = storage
        self._served: tuple[BaseStorage, WsgiApp] | None = None
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Without one its static files answer 500.
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")
        return self._application()(environ, start_response)

    def _application(self) -> WsgiApp:
        from optuna_dashboard import wsgi

        with self._lock:
            storage = self._storage()
            if self._served is None or self._served[0] is not storage:
                self._served = (storage, wsgi(storage))
            return self._served[1]

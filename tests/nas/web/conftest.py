"""A folder of studies as searches leave them, and the dashboard over it without a network."""

import io
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest

from nas import driver
from nas.console import QuietObserver
from nas.driver import begin, run_study
from nas.web.app import App
from nas.web.guard import Guard
from nas.web.optuna_pages import OptunaPages
from nas.web.runs import Runs
from nas.web.server import make
from nas.web.studies import Studies
from tests.nas.conftest import StudyExecutor

HOST = "127.0.0.1:8080"


@dataclass(frozen=True)
class Got:
    """An answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self):
        return self.body.decode()


class Client:
    """Asks an application as a browser on this machine would, unless told otherwise."""

    def __init__(self, app):
        self.app = app

    def get(self, way, method="GET", **changes):
        way, _, query = way.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": way,
            "QUERY_STRING": query,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8080",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": HOST,
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
        }
        environ = {name: value for name, value in (environ | changes).items() if value is not None}
        started = []
        parts = self.app(environ, lambda *given: started.append(given))
        body = b"".join(parts)
        getattr(parts, "close", lambda: None)()  # as every server does
        status, headers = started[0][:2]
        return Got(int(status.split()[0]), dict(headers), body)

    def post(self, way, form, **changes):
        body = urlencode(form).encode()
        given = {
            "HTTP_ORIGIN": f"http://{HOST}",
            "HTTP_SEC_FETCH_SITE": "same-origin",
            "CONTENT_TYPE": "application/x-www-form-urlencoded",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        return self.get(way, "POST", **given | changes)


class RecordedRuns(Runs):
    """Remembers what would have been started or stopped."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def resume(self, folder, more):
        self.asked.append(("resume", folder.name, more))

    def stop(self, folder):
        self.asked.append(("stop", folder.name))

    def export(self, folder, formats, *, int8):
        self.asked.append(("export", folder.name, tuple(formats), int8))

    def cancel_export(self, folder):
        self.asked.append(("cancel", folder.name))


def searched(problem, fastest, studies, executor, **settings):
    """Runs a study in its folder with an executor that answers at once, until it ends or is ended."""
    own = problem.settings.model_copy(update={"trials": 9, "finalists": 3} | settings)
    folder = studies / own.study
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "check_budget", lambda problem: fastest)
        patch.setattr(driver, "_executor", lambda settings: executor)
        return run_study(begin(own, folder, QuietObserver()), folder, QuietObserver())


@pytest.fixture(scope="session")
def finished(tmp_path_factory, problem, fastest):
    """A folder with one finished study, for those who only look."""
    studies = tmp_path_factory.mktemp("web") / "studies"
    searched(problem, fastest, studies, StudyExecutor(), study="mine")
    return studies


@pytest.fixture
def client_of():
    """The dashboard over a folder, its runs recorded and not carried out."""

    def make(studies: Path, runs=None, **options):
        runs = runs or RecordedRuns()
        found = Studies(studies, runs)
        guard = Guard("127.0.0.1")
        client = Client(App(found, runs, guard, OptunaPages(lambda: found.storage), **options))
        client.runs, client.guard, client.studies = runs, guard, found
        return client

    return make


@pytest.fixture
def client(client_of, finished):
    return client_of(finished)


@pytest.fixture
def serve():
    """A server that listens, over a folder of studies."""
    servers = []

    def start(studies, **options):
        server = make(Guard("127.0.0.1", options.get("password")), 0, studies, None, False)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()

"""From a request to an answer: the guard first, then the page, file or action that the address names."""

import hashlib
import importlib.resources
import logging
import mimetypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

from optuna.trial import FrozenTrial

from hardware.strict_yaml import ConfigError
from nas.files import is_of_the_disk
from nas.members import FRONT_JSON, read_front
from nas.report import REPORT
from nas.settings import StudyFile, read_study_file
from nas.web.anatomy import Anatomy, anatomy
from nas.web.downloads import ARCHIVE, export_archive, file_to_send, model_downloads, study_downloads
from nas.web.export_job import read_state
from nas.web.forms import extension, wanted_formats
from nas.web.guard import LOOK_ONLY, Denied, Guard
from nas.web.markup import element
from nas.web.optuna_pages import OWN_PATHS, OptunaPages
from nas.web.pages import StoredList, TakeHome, list_page, page, stored_page, stored_url, study_page, study_url
from nas.web.runs import Refused, Runs
from nas.web.stored import FOREIGN, StoredStudies
from nas.web.studies import Live, NoSuchStudy, Studies
from nas.web.trial_page import trial_page

logger = logging.getLogger(__name__)

# A form of ours is far smaller.
LARGEST_FORM_BYTES = 4096
CHUNK_BYTES = 65_536

Headers = dict[str, str]

SAFE: Headers = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Forms tell where they come from only to their own server, which asks for it.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
OWN_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# A file of a study is no page of ours: it runs nothing and belongs to no origin.
SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"

ASK_PASSWORD = {"WWW-Authenticate": 'Basic realm="edge-nas", charset="UTF-8"'}

ASSETS = {"dashboard.css": "text/css; charset=utf-8", "dashboard.js": "text/javascript; charset=utf-8"}


@dataclass(frozen=True)
class Answer:
    """A status, the headers beside those that every answer has, and the body or an open file."""

    status: int
    headers: Headers
    body: bytes | IO[bytes] = b""


@dataclass(frozen=True)
class Request:
    """What is asked: the way with its names decoded, and what stands behind the question mark."""

    environ: dict[str, Any]
    way: tuple[str, ...]
    query: dict[str, str]

    @property
    def method(self) -> str:
        method: str = self.environ["REQUEST_METHOD"]
        return method


class App:
    """The dashboard as a WSGI application."""

    def __init__(
        self,
        studies: Studies,
        runs: Runs,
        guard: Guard,
        optuna: OptunaPages | None,
        stored: StoredStudies | None = None,
        *,
        optuna_writes: bool = False,
    ) -> None:
        """`optuna` is None where optuna-dashboard is not installed, `stored` where no storage is shown."""
        self._studies = studies
        self._runs = runs
        self._guard = guard
        self._optuna = optuna
        self._stored = stored
        self._optuna_writes = optuna_writes
        # The last page of each study, and what it was drawn from: most of those who ask have it already.
        self._drawn: dict[str, tuple[Live, object, str]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = None
        try:
            self._guard.check(environ)
            request = _request(environ)
            if request.way and request.way[0] in OWN_PATHS:
                return self._from_optuna(request, start_response)
            answer = self._answer(request)
        except Exception as error:
            answer = self._explained(error, request)
        return _send(answer, environ["REQUEST_METHOD"], start_response)

    def _explained(self, error: Exception, request: Request | None) -> Answer:
        headers: Headers = {}
        if isinstance(error, Denied):
            status, why = error.status, error.why
            if error.retry_after_s is not None:
                headers["Retry-After"] = str(error.retry_after_s)
        elif isinstance(error, NoSuchStudy):
            status, why = 404, str(error)
        elif isinstance(error, Refused):
            status, why = 409, str(error)
        elif isinstance(error, ConfigError) or is_of_the_disk(error):
            status, why = 500, str(error)
        else:
            logger.exception("a request could not be answered")
            status, why = 500, "something broke; the terminal of the dashboard says what"
        inside = [element("p", why, role="alert", id="why")]
        if status in (400, 409) and request is not None and request.method == "POST":
            name = request.way[1]
            inside.append(element("p", element("a", f"Back to {name}", href=study_url(name), id="back")))
        answer = self._page(HTTPStatus(status).phrase, *inside, status=status)
        if status == 401:
            headers |= ASK_PASSWORD
        return replace(answer, headers=answer.headers | headers)

    def _page(self, title: str, *inside: object, status: int = 200) -> Answer:
        return _html(page(title, element("h1", title), *inside, with_optuna=self._optuna is not None), status)

    def _from_optuna(self, request: Request, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._optuna is None:
            raise Denied(404, "Optuna's own pages need optuna-dashboard: pip install 'edge-nas[dashboard]'")
        if request.method not in LOOK_ONLY:
            if not self._optuna_writes:
                raise Denied(403, "Optuna's pages can only be looked at here")
            self._guard.check_origin(request.environ)

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            own = {name.lower() for name, _ in headers}
            return start_response(
                status, headers + [each for each in SAFE.items() if each[0].lower() not in own], *more
            )

        return self._optuna(request.environ, start)

    def _answer(self, request: Request) -> Answer:
        if request.method == "POST":
            match request.way:
                case ("studies", name, "resume" | "extend" | "stop" | "export" | "cancel" as action):
                    return self._act(name, action, request)
        elif request.method in LOOK_ONLY:
            match request.way:
                case ():
                    return self._list(request)
                case ("own", name) if name in ASSETS:
                    return _asset(name)
                case ("stored", number) if number.isdecimal():
                    return self._stored_study(int(number), request)
                case ("stored", number, "trials", trial) if number.isdecimal() and trial.isdecimal():
                    return self._stored_trial(int(number), int(trial))
                case ("studies", name):
                    return self._study(name, request)
                case ("studies", name, "trials", number) if number.isdecimal():
                    return self._trial(name, int(number))
                case ("studies", name, file) if file == ARCHIVE:
                    return self._archive(name)
                case ("studies", name, "files", *path):
                    return self._file(name, "/".join(path))
        else:
            raise Denied(405, f"{request.method[:20]} is not something that this server does")
        raise Denied(404, "there is nothing at this address")

    def _list(self, request: Request) -> Answer:
        overviews = [self._studies.live(name).overview for name in self._studies.names()]
        stored = None
        if self._stored is not None:
            owners = {each.record.owner for each in overviews if each.record is not None}
            try:
                stored = StoredList(self._stored.where, self._stored.overviews(owners))
            except ConfigError as error:
                stored = StoredList(self._stored.where, {}, str(error))
        return _fresh(request, list_page(overviews, str(self._studies.root), stored, self._optuna is not None))

    def _stored_study(self, number: int, request: Request) -> Answer:
        stored = self._shown_storage()
        live = stored.live(stored.name_of(number))
        with_optuna = self._optuna is not None
        return _fresh(request, stored_page(live, number, stored.where, with_optuna))

    def _stored_trial(self, number: int, trial_number: int) -> Answer:
        stored = self._shown_storage()
        name = stored.name_of(number)
        trial = _trial_of(stored.trials(name), trial_number, name)
        record = stored.record(name)
        if record is None:
            raise Denied(404, f"trials of {name} have no page. {FOREIGN}")
        found = _drawn(record, trial, None)
        no_files = "If it was trained, its files are in the study's folder, on the machine where that is."
        return _html(trial_page(name, trial, found, None, (), stored_url(number), self._optuna is not None, no_files))

    def _shown_storage(self) -> StoredStudies:
        if self._stored is None:
            raise Denied(404, "this dashboard was not given a storage; nas dashboard --storage URL")
        return self._stored

    def _study(self, name: str, request: Request) -> Answer:
        live = self._studies.live(name)
        said, optuna_id = request.query.get("said", ""), self._optuna_id(live, name)
        known = self._drawn.get(name)
        if known is None or known[0] is not live or known[1] != (said, optuna_id):
            folder = self._studies.folder(name)
            take_home = TakeHome(study_downloads(folder), read_state(folder), self._runs.is_exporting(folder))
            text = study_page(live, self._guard.token, take_home, said, optuna_id, self._optuna is not None)
            known = self._drawn[name] = (live, (said, optuna_id), text)
        return _fresh(request, known[2])

    def _optuna_id(self, live: Live, name: str) -> int | None:
        """Where Optuna's pages have the study; None where they show a storage in which it is not."""
        if self._stored is None:
            return self._studies.optuna_id(name)
        record = live.overview.record
        return None if record is None else self._stored.number_of(record)

    def _trial(self, name: str, number: int) -> Answer:
        folder = self._studies.folder(name)
        trial = _trial_of(self._studies.trials(name), number, name)
        member = None
        if (folder / FRONT_JSON).exists():
            member = next((each for each in read_front(folder)["members"] if each["trial"] == number), None)
        found = _drawn(read_study_file(folder), trial, folder)
        files = model_downloads(folder, number)
        return _html(trial_page(name, trial, found, member, files, study_url(name), self._optuna is not None))

    def _archive(self, name: str) -> Answer:
        try:
            archive = export_archive(self._studies.folder(name))
        except FileNotFoundError as error:
            raise Denied(404, f"the front of {name} was not exported yet; press Export on its page") from error
        return _attachment(archive, f"{name}-exported.zip", "application/zip")

    def _file(self, name: str, path: str) -> Answer:
        folder = self._studies.folder(name)
        found = file_to_send(folder, path)
        if found is None:
            raise Denied(404, f"study {name} has no such file to send")
        kind = mimetypes.guess_type(found.name)[0] or "application/octet-stream"
        if path == REPORT:
            return Answer(
                200, {"Content-Type": f"{kind}; charset=utf-8", "Content-Security-Policy": SANDBOX}, found.open("rb")
            )
        return _attachment(found.open("rb"), f"{name}-{path.removeprefix('models/').replace('/', '-')}", kind)

    def _act(self, name: str, action: str, request: Request) -> Answer:
        form = _form(request.environ)
        self._guard.check_change(request.environ, form.get("token", ""))
        folder = self._studies.folder(name)
        match action:
            case "stop":
                self._runs.stop(folder)
            case "resume":
                self._runs.resume(folder, {})
            case "extend":
                self._runs.resume(folder, extension(form, read_study_file(folder)))
            case "cancel":
                self._runs.cancel_export(folder)
            case "export":
                formats = wanted_formats(form)
                if not (folder / FRONT_JSON).exists():
                    raise Refused(f"{name} has no front yet; resume it to its end first")
                self._runs.export(folder, formats, int8="int8" in form)
        return Answer(303, {"Location": f"{study_url(name)}?said={action}"})


def _trial_of(trials: Sequence[FrozenTrial], number: int, name: str) -> FrozenTrial:
    trial = next((each for each in trials if each.number == number), None)
    if trial is None:
        raise Denied(404, f"study {name} has no trial {number}")
    return trial


def _drawn(record: StudyFile, trial: FrozenTrial, folder: Path | None) -> Anatomy | str:
    # What else is known of a trial is shown even where its network cannot be drawn.
    try:
        return anatomy(record, trial, folder)
    except ConfigError as error:
        return str(error)


def _request(environ: dict[str, Any]) -> Request:
    # The server hands over bytes as if they were Latin-1.
    path = environ.get("PATH_INFO", "/").encode("latin-1").decode("utf-8", "replace")
    query = {name: values[-1] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
    return Request(environ, tuple(part for part in path.split("/") if part), query)


def _form(environ: dict[str, Any]) -> dict[str, str]:
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or int(length) > LARGEST_FORM_BYTES:
        raise Denied(413, "a form is smaller than that")
    if environ.get("CONTENT_TYPE", "").partition(";")[0] != "application/x-www-form-urlencoded":
        raise Denied(415, "changes come as forms")
    body = environ["wsgi.input"].read(int(length)).decode("utf-8", "replace")
    return {name: values[-1] for name, values in parse_qs(body).items()}


def _html(text: str, status: int = 200, etag: str | None = None) -> Answer:
    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": OWN_PAGE}
    return Answer(status, headers | ({"ETag": etag} if etag else {}), text.encode())


def _fresh(request: Request, text: str) -> Answer:
    """The page, or that it is still the one which the reader has."""
    etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    if request.environ.get("HTTP_IF_NONE_MATCH") == etag:
        return Answer(304, {"ETag": etag})
    return _html(text, etag=etag)


def _asset(name: str) -> Answer:
    body = (importlib.resources.files("nas.web") / "static" / name).read_bytes()
    return Answer(200, {"Content-Type": ASSETS[name]}, body)


def _attachment(file: IO[bytes], saved: str, kind: str) -> Answer:
    headers = {"Content-Type": kind, "Content-Disposition": f'attachment; filename="{saved}"'}
    return Answer(200, headers | {"Content-Security-Policy": SANDBOX}, file)


def _send(answer: Answer, method: str, start_response: Callable[..., Any]) -> Iterable[bytes]:
    headers = SAFE | {"Cache-Control": "no-store"} | answer.headers
    body = answer.body
    size = len(body) if isinstance(body, bytes) else body.seek(0, 2)
    if answer.status != 304:
        headers["Content-Length"] = str(size)
    start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", list(headers.items()))
    if isinstance(body, bytes):
        return [b"" if method == "HEAD" else body]
    body.seek(0)
    return _chunks(body, 0 if method == "HEAD" else size)


def _chunks(file: IO[bytes], size: int) -> Iterator[bytes]:
    # No more than was announced, should the file be growing.
    with file:
        while size > 0 and (chunk := file.read(min(size, CHUNK_BYTES))):
            size -= len(chunk)
            yield chunk

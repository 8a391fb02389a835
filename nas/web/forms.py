"""What the forms of the pages ask for, checked as the command line checks it and in its words."""

import re
from collections.abc import Mapping

from hardware.strict_yaml import ConfigError
from nas.export_formats import FORMATS
from nas.settings import StudyFile, extended_settings
from nas.web.guard import Denied

Form = Mapping[str, str]

WHOLE = re.compile(r"[+-]?[0-9]{1,9}")


def wanted_formats(form: Form) -> list[str]:
    """The formats that are ticked.

    Raises:
        Denied: there is none, or eight bits without what they are made of.
    """
    formats = [name for name in FORMATS if name in form]
    if not formats:
        raise Denied(400, f"formats: at least one of {', '.join(FORMATS)}")
    if "int8" in form and "onnx" not in form:
        raise Denied(400, "int8: made of the ONNX model, so onnx has to be among the formats")
    return formats


def extension(form: Form, record: StudyFile) -> dict[str, str]:
    """What `nas resume` is to be given, by flag: a field that is empty, or as the study has it, says nothing.

    Raises:
        Denied: a value breaks its rule, or nothing would change.
    """
    more, finalists = _whole("trials", form), _whole("finalists", form)
    # In one line, as the log will have it.
    budget = " ".join(form.get("budget", "").split())
    changed = {"finalists": finalists, "budget": budget or None}
    try:
        wanted = extended_settings(record, more, {name: value for name, value in changed.items() if value is not None})
    except ConfigError as error:
        raise Denied(400, str(error)) from error
    flags = {} if more is None else {"trials": str(more)}
    if wanted.finalists != record.finalists:
        flags["finalists"] = str(wanted.finalists)
    if wanted.budget_ms != record.budget_ms:
        flags["budget"] = wanted.budget
    if not flags:
        raise Denied(400, "nothing to extend: give more trials, other finalists or another budget")
    return flags


def _whole(name: str, form: Form) -> int | None:
    text = form.get(name, "").strip()
    if not text:
        return None
    if WHOLE.fullmatch(text) is None:
        raise Denied(400, f"{name}: a whole number, got {text[:20]!r}")
    return int(text)

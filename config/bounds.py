"""A value that is out of bounds, in words: which variable, which value, which bound, what to do."""

from __future__ import annotations

from pydantic_core import ErrorDetails

from config.environment import Value
from config.errors import Fault
from config.variables import Variable

_SERVICE_LINK_SCHEMES = ("tcp://", "udp://")


def fault_of(variable: Variable, value: Value, detail: ErrorDetails) -> Fault:
    """The fault for one of pydantic's errors: `DB_PORT=70000 is greater than 65535: give …`."""
    if value.origin == value.variable:  # part of a URL; not shown, for in a malformed URL it may be of the password
        part = variable.name.partition("_")[2].lower()
        return Fault(f"{value.variable} ({part})", *_problem_and_remedy(variable, detail))
    if variable.field.endswith("host") and ("@" in value.text or "://" in value.text):  # perhaps with a password
        url = {"DB": ", or set DATABASE_URL", "REDIS": ", or set REDIS_URL"}.get(variable.group, "")
        return Fault(value.variable, "is a URL or user@host, not a host", f"give the host alone{url}")
    if value.text.startswith(_SERVICE_LINK_SCHEMES) and not variable.secret:
        service = variable.name.partition("_")[0].lower()
        return Fault(
            value.variable,
            f"is what Kubernetes injects for a Service named '{service}', not {variable.wanted}",
            f"set enableServiceLinks: false in the pod's spec, or set {value.variable} there",
            value=value.text,
        )
    problem, remedy = _problem_and_remedy(variable, detail)
    if variable.default != "–":
        remedy += f", or unset it for the default ({variable.default.replace('`', '')})"
    return Fault(value.variable, problem, remedy, value=None if variable.secret else value.text)


def _problem_and_remedy(variable: Variable, detail: ErrorDetails) -> tuple[str, str]:
    context = detail.get("ctx", {})
    give = f"give {variable.wanted}"
    match detail["type"]:
        case "greater_than_equal":
            return f"is less than {context['ge']:g}", give
        case "greater_than":
            return f"is not greater than {context['gt']:g}", give
        case "less_than_equal":
            return f"is greater than {context['le']:.0f}", give
        case "string_pattern_mismatch" if "\\x00" in str(context["pattern"]):
            return "has a NUL byte", give
        case "string_too_short":
            return "has an empty item", give
        case _:
            return f"is not {variable.wanted}", "give one"

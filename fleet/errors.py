"""What the fleet's shared parts raise at the person who runs a process: one line each, and an exit code."""

from __future__ import annotations

from pydantic import ValidationError

from config.exit_codes import ExitCode


class FleetError(Exception):
    """Base of all errors of this package. Its text is one line without secrets; `exit_code` ends the process."""

    exit_code = ExitCode.NOT_READY


class QueueUnreachable(FleetError):
    """Redis gave no usable answer within REDIS_CONNECT_TIMEOUT while a process started."""


class QueueLost(FleetError):
    """Redis went away while a process ran."""


class WrongRedisPassword(FleetError):
    """Redis answers and refuses the user or the password."""

    exit_code = ExitCode.USAGE


class RefusedByRedis(FleetError):
    """Redis answers and refuses something else that the settings ask for, such as a database it does not have."""

    exit_code = ExitCode.USAGE


def reason(error: BaseException) -> str:
    """What `error` says, to be put in brackets; a timeout's own text is often empty."""
    text = text_of(error)
    if isinstance(error, TimeoutError) and not text:
        return "no answer in time"
    return text.rstrip(".") or type(error).__name__


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, and where; not the value, which nobody may be meant to see."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def text_of(error: BaseException) -> str:
    """What `error` says; an exception of a job's own may be unable to."""
    try:
        return str(error)
    except Exception:
        return "(its text cannot be made)"


class AppRefused(FleetError):
    """APP names a module that is not there, cannot be imported, or declares what cannot be."""

    exit_code = ExitCode.USAGE


class ExerciseStopped(FleetError):
    """Not all jobs of an exercise are done, and waiting on makes no sense."""

    exit_code = ExitCode.FINDING

"""The one exception a user is meant to read."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """A mistake the user can mend: the message names the field or file, what was found and the remedy.

    The command line prints it as one line and exits with status 2, without a traceback. Everything else that is raised is a defect.
    """


class Unavailable(OSError):
    """A remote place that does not answer: tasks are tried again, since that may help; what is left of it at the end is a `UserError`."""


@contextmanager
def naming(setting: str) -> Iterator[None]:
    """Put the setting before what is said of its value."""
    try:
        yield
    except (UserError, Unavailable) as error:
        raise type(error)(f"{setting}: {error}") from error


def one_line(error: BaseException) -> str:
    """What a library said, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def as_user_error(error: BaseException) -> UserError | None:
    """The user's view of an exception, if there is one: a `UserError` itself, or a full or forbidden place anywhere in the chain of causes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        if isinstance(seen, Unavailable):
            return UserError(str(seen))
        if getattr(seen, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(seen):
            return UserError(f"storage: no space left on device ({seen}); free some space or set storage to another place, then run the same command again")
        if isinstance(seen, OSError) and seen.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR):
            return UserError(f"{seen.filename or 'storage'}: {seen.strerror or seen}; check the permissions, or give a path that can be used")
        seen = getattr(seen, "cause", None) or seen.__cause__ or seen.__context__
    return None


def as_outcome(function: Callable[..., Mapping[str, Any]], *arguments: Any) -> str:
    """Call a task and return its JSON result, or `{"user_error": …}`: mistakes travel as data, since trying again would not help."""
    try:
        return json.dumps(function(*arguments))
    except Unavailable:
        raise
    except Exception as error:
        found = as_user_error(error)
        if found is None:
            raise
        return json.dumps({"user_error": str(found)})


def from_outcome(outcome: str) -> dict[str, Any]:
    """Read back `as_outcome`; raises the `UserError` that was found."""
    result: dict[str, Any] = json.loads(outcome)
    if "user_error" in result:
        raise UserError(result["user_error"])
    return result

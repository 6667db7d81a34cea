"""What a user is told when something is wrong.

    ValueError
    └── UserError      wrong use: the command prints the sentence and exits with 2
        └── DataError  work was left undone because of the data: exits with 3

A message has three parts, separated by semicolons: what is wrong; where; what to do.
It never holds a patient's name, identifier, date or a path below the source folder.
"""

from __future__ import annotations

__all__ = ["DataError", "UserError", "user_error_in"]


class UserError(ValueError):
    """Wrong use: ``UserError("what is wrong; where; what to do")``."""

    exit_code = 2


class DataError(UserError):
    """Work was left undone because of the data."""

    exit_code = 3


def user_error_in(error: BaseException | None) -> UserError | None:
    """The `UserError` behind ``error``, following causes and contexts, or None.

    Frameworks wrap what a component raises (MONAI's config parser in `RuntimeError`), and the user
    is to read our sentence, not the wrapper's. A data loader's worker hands over the text of its whole
    traceback, of which the last line is the sentence.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            message = str(error)
            if not message.startswith("Caught "):
                return error
            return type(error)(message.strip().splitlines()[-1].partition("Error: ")[2])
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None

"""Options as they come from command lines."""

from __future__ import annotations

from lvmmed_monai.errors import UserError

__all__ = ["true_or_false"]


def true_or_false(value: bool | str, name: str) -> bool:
    """A boolean option. MONAI's command line passes ``--amp false`` on as a word, which Python would take for true.

    Args:
        value: a boolean, or "true" or "false" in any case.
        name: of the option.

    Raises:
        UserError: anything else.
    """
    words = {"true": True, "false": False}
    word = str(value).lower()
    if isinstance(value, bool | str) and word in words:
        return words[word]
    raise UserError(f"{name} must be true or false, got {value!r}; options; correct it")

"""The one base class of errors that a user can mend: wrong prompts, settings, models or places."""


class InputError(ValueError):
    """The input or the settings are wrong; nothing was started. The message says what to do (exit status 2)."""

"""The errors a person can meet. Every message names the thing, the rule, the value and the way out."""


class VmaptuneError(Exception):
    """Base of all errors that vmaptune raises on purpose; the command line prints it without a traceback."""


class InputError(VmaptuneError, ValueError):
    """The person's mistake: a bad space, experiment, option or path. Exit code 2."""


class StudyError(VmaptuneError):
    """A study on disk that cannot be read or written. Exit code 1."""

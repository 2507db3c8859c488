"""How a mistake reaches its user: one exception, one line."""


class IkdError(Exception):
    """What is wrong, where, and how to mend it, in one line.

    The command line prints the text and exits with status 2, without a traceback;
    a notebook shows it as the last line of its cell's error.
    """


WARNING = "ikdlib: warning: "
"""How a command's warnings begin, in a terminal and in a run's log."""


def first_line(error: BaseException) -> str:
    """The first line of a library's message, which may run over many; the error's kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

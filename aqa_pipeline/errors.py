"""Errors the program raises on purpose, each with the exit code its command ends with.

Every message is written for the person at the keyboard: where, what was found, what was
expected, what to do next. The command line prints it as one line, adds the option that
gives ``fact``, and never shows a traceback for it.

=====  =========================================================
code   meaning
=====  =========================================================
0      done
1      unexpected (a bug: the only case with a traceback)
2      usage (click)
3      done, but some clips failed
4      bad table or data
5      cache and settings disagree
6      environment: missing weights, missing extra, no GPU
130    interrupted (SIGINT); a second call resumes
143    terminated (SIGTERM); a second call resumes
=====  =========================================================
"""


class AqaError(Exception):
    """Parent of every error the library raises on purpose.

    Parameters
    ----------
    message : str
        The sentence for the user; it names arguments in words, for a notebook has no options.
    fact : str or None
        Name of the argument that puts it right, such as ``difficulty`` or ``weights``: the command
        line says which of its options gives it.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, fact: str | None = None) -> None:
        super().__init__(message)
        self.fact = fact


class UsageError(AqaError):
    """Two options contradict each other, or name something that does not exist."""

    exit_code = 2


class MissingFactError(UsageError):
    """Something must be known, or chosen, that nobody has said: ``fact`` is its name."""


class ClipError(AqaError):
    """One clip cannot be turned into features; the others go on.

    Parameters
    ----------
    message : str
        The sentence for the user.
    stage : str
        Where it happened: ``"open"``, ``"index"``, ``"window"``, ``"decode"``,
        ``"timeout"``, ``"worker"`` or ``"network"``.
    detail : str
        What the decoder itself said, empty when it said nothing.
    """

    exit_code = 3

    def __init__(self, message: str, *, stage: str = "decode", detail: str = "") -> None:
        super().__init__(message)
        self.stage = stage
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments are lost by Exception's own pickling, and this
        # error crosses from the decoding process to the main one.
        return (_rebuild_clip_error, (type(self), str(self), self.stage, self.detail))


def _rebuild_clip_error(cls: type[ClipError], message: str, stage: str, detail: str) -> ClipError:
    return cls(message, stage=stage, detail=detail)


class DataError(AqaError):
    """A table, manifest, annotation file or label cannot be used as it is."""

    exit_code = 4


class CacheError(AqaError):
    """The feature cache lacks or contradicts what the settings ask for."""

    exit_code = 5


class SetupError(AqaError):
    """The machine lacks something: weights, an optional package, a GPU, disk space."""

    exit_code = 6


def first_line(error: BaseException) -> str:
    """Class and first line of an error, at most 200 characters, for the log."""
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]

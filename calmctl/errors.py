"""Every error this package raises on purpose.

    CalmError                  a sentence for a person; exit code 1
    ├── RunFailed              a run started and could not finish
    │   └── RunInUse           another process has the run
    └── BadInput               something the user gave is wrong; exit code 2
        ├── RecipeError        a recipe, or an override of one
        ├── VocabularyError    an anchor vocabulary or a label list
        ├── DatasetError       annotation files, a dataset's layout, a missing dataset
        ├── VideoError         one clip that cannot be decoded
        │   └── DecodingStopped    ... because of a limit or of the machine, not of its file
        ├── StoreError         a feature store
        ├── CheckpointError    a checkpoint or a backbone's weights
        │   └── HubError           ... that cannot be had from a hub
        └── RunNotFound        no run where one was expected

A message says what is wrong, where (file, line or key) and what to do about it.
"""

import errno

_OF_A_MACHINE = ("EACCES", "EDQUOT", "EFBIG", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EPERM", "EROFS")
MACHINE_ERRORS = frozenset(getattr(errno, name) for name in _OF_A_MACHINE if hasattr(errno, name))
"""What a disk, rights or a limit refuse: no fault of the input, nor of ours."""


class CalmError(Exception):
    """Base of all deliberate errors; its message is shown to the user as it is."""

    exit_code = 1


class RunFailed(CalmError):
    """A run that started and could not finish."""


class RunInUse(RunFailed):
    """Another process has the run, and it is as it should be."""


class BadInput(CalmError):
    """Something the user gave is wrong: a file, a key, a value."""

    # Distinct from 1, so that a script can tell "mend the command" from "try again, or resume".
    exit_code = 2


class RecipeError(BadInput):
    """A recipe, or an override of one, is wrong."""


class VocabularyError(BadInput):
    """An anchor vocabulary or a label list is wrong."""


class DatasetError(BadInput):
    """Annotation files or a dataset's layout are wrong or missing."""


class VideoError(BadInput):
    """One clip cannot be decoded; the message is the reason that reports list.

    Attributes:
        limit_s: None where it is the file's own fault. Else the clip was given up after so many seconds, or its
            decoder was killed from outside (0): with more time, or next time, it may do.
    """

    # A store keeps this beside the reason: a fault of the file is remembered, but what a time limit or the machine
    # stopped is tried again. Stores that forgot the difference called sound clips broken for ever.
    limit_s: float | None = None


class DecodingStopped(VideoError):
    """A time limit or the machine ended the decoding of a clip: nothing is known of its file."""

    def __init__(self, message: str, *, limit_s: float) -> None:
        super().__init__(message)
        self.limit_s = limit_s


class StoreError(BadInput):
    """A feature store is damaged, or does not fit what it is used with."""


class CheckpointError(BadInput):
    """A checkpoint or a backbone's weights cannot be used."""


class HubError(CheckpointError):
    """A file cannot be had from a hub of models, or not be passed on to one; the message has the reason."""


class RunNotFound(BadInput):
    """No run where one was expected."""

"""The one error that is shown to a person without a traceback."""


class UserError(Exception):
    """Wrong use: a flag, a file or a clip. Says what is wrong, the value, what was expected, how to mend it.

    Verbs print the sentence and exit with code 2; nothing has been written by then.
    """


class PromptError(UserError):
    """A prompt that this model cannot score."""


class PauseError(Exception):
    """A fault outside the program (network, server, disk, device). The same command resumes; exit code 1."""


class LeakError(UserError):
    """A leak: a source in two splits, or clips to be scored whose source a checkpoint was trained on."""


class DeviceLostError(PauseError):
    """The GPU does not answer any more in this process; a new process may have it back."""

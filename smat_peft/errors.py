"""The errors that smat_peft raises itself: one family, so that a caller can catch them all."""


class SmatError(ValueError):
    """Something a user can mend; the message says what is wrong and what would be right.

    Attributes:
        exit_status: What a command that ends with it returns; argparse's own for wrong arguments.
    """

    exit_status = 2


class ConfigurationError(SmatError):
    """An argument or configuration field that is out of range or contradicts another."""


class DataError(SmatError):
    """Images, classes or domains that cannot be used; the message names the file or the class."""


class CheckpointError(SmatError):
    """A checkpoint or output directory that cannot be used."""


class HubError(SmatError):
    """A repository of the Hub that cannot be written to."""


class RunStoppedError(SmatError):
    """A run that a signal has stopped, after a checkpoint."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again


class NotFiniteError(ConfigurationError):
    """Features are not finite: the pixels are not, or the weights that steps of a high learning rate have led to."""

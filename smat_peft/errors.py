"""The errors that smat_peft raises itself: one family, so that a caller can catch them all."""


class SmatError(ValueError):
    """Something a user can mend; the message says what is wrong and what would be right."""


class ConfigurationError(SmatError):
    """An argument or configuration field that is out of range or contradicts another."""


class DataError(SmatError):
    """Images, classes or domains that cannot be used; the message names the file or the class."""


class CheckpointError(SmatError):
    """A checkpoint or output directory that cannot be used."""


class HubError(SmatError):
    """A repository of the Hub that cannot be written to."""

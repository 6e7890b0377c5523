"""The errors that leave this package; `str()` of each is a sentence for the user."""


class ServingError(Exception):
    """A model, a version or a repository is not as it must be."""


class ServerAway(ServingError):
    """The model server does not answer: nothing is known of the model."""


class ServerBusy(ServerAway):
    """The model server has not done what it was asked, and no version is to blame: it is slow, or reads elsewhere."""


class ModelError(ServingError):
    """A model refuses what it is asked, or fails; the sentence is that of what runs it.

    Attributes:
        code: the status, such as INVALID_ARGUMENT.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

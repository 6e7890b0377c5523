"""The one error that leaves this package; `str()` of it is a sentence for the user."""


class ServingError(Exception):
    """A model, a version or a repository is not as it must be."""

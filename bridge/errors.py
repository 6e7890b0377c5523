"""The few errors that leave the bridge. Each carries one sentence a user can act on."""


class HeadraceError(Exception):
    """The root: `str()` of it is one sentence for the user, never a traceback."""


class ConfigError(HeadraceError):
    """The configuration is wrong, by itself or against the live model or topics: exit code 2."""

    def __init__(self, *sentences: str) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = sentences


class PipelineStopped(HeadraceError):
    """Something that cannot heal by itself stopped the flow at run time: exit code 1."""

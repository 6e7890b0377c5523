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


class PartitionHalted(HeadraceError):
    """One partition cannot go on until somebody acts; the others do, and it is tried again now and then."""


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of errors that happened side by side the one that explains the others: a sentence for the user if any is."""
    stopped, others = group.split(HeadraceError)
    chosen: BaseException = stopped or others or group
    while isinstance(chosen, BaseExceptionGroup):
        chosen = chosen.exceptions[0]
    return chosen

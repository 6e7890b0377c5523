"""The argument that many commands share: a model repository."""

from typing import Annotated

import typer

RepositoryArgument = Annotated[
    str, typer.Argument(metavar="REPOSITORY", help="The folder of models, or its URL in an object store.")
]

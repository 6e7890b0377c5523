"""Files of a version: copied as a whole."""

import re
import shutil
from pathlib import Path


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder with all that is in it; links are followed, so that the copy stands by itself.

    Raises:
        OSError: something cannot be read or written; `strerror` says why, for the first such file.
    """
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:
        # It holds a text for each file: "[Errno 28] No space left on device: 'from' -> 'to'".
        told = str(error.args[0][0][2]) if error.args[0] else str(error)
        number = re.match(r"\[Errno (\d+)\]", told)
        reason = re.sub(r"^\[Errno \d+\] |: '.*$", "", told, flags=re.DOTALL)
        raise OSError(int(number[1]) if number else 0, reason) from None

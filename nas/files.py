"""Writing files so that a reader, or a full disk, never meets half of one."""

import errno
import os
from pathlib import Path

# A full disk, a used-up quota, a file that may not grow, a file system or folder that may not be written.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an error means that nothing can be written, which is the user's to mend and whose message says enough."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def write_atomically(path: Path, text: str) -> None:
    """Puts `text` in the place of the file; until it is on the disk as a whole, the old file stays."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)

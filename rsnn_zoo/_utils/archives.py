"""Zip archives of strangers: what they would unpack to is known before anything of them is unpacked."""

import os
import zipfile
from collections.abc import Collection

__all__ = ["MAX_SWELLING", "SMALL", "UNREADABLE", "check_swelling"]

MAX_SWELLING = 16
"""How many times its size an archive may unpack to; images of photographs shrink to a half, drawings to a tenth."""
SMALL = 2**28
"""Bytes that any archive may unpack to."""
UNREADABLE = (OSError, EOFError, RuntimeError, MemoryError, ValueError, zipfile.BadZipFile)
"""What reading a damaged archive raises, besides the errors of the compressions that are allowed (``zlib.error``)."""
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def check_swelling(archive: zipfile.ZipFile, names: Collection[str] | None = None, small: int | None = None) -> None:
    """Refuse a zip archive that is small and would take much memory once it is unpacked.

    What its directory says of the sizes is what readers keep to, be it true or not.

    Args:
        archive: Open for reading.
        names: Of the members that will be read; None for all.
        small: Bytes that it may unpack to however small it is, :data:`SMALL` by default.

    Raises:
        ValueError: If it unpacks to more than that and more than 16 times its size, or is packed in an unusual way.
    """
    members = [one for one in archive.infolist() if names is None or one.filename in names]
    if odd := [one.filename for one in members if one.compress_type not in _COMPRESSIONS]:
        raise ValueError(f"{odd[0][:80]!r} in it is packed in a way that is not read: write it uncompressed")
    size = archive.fp.seek(0, os.SEEK_END)  # type: ignore[union-attr]
    unpacked = sum(one.file_size for one in members)
    if unpacked > max(SMALL if small is None else small, MAX_SWELLING * size):
        raise ValueError(
            f"its {size:,} bytes would unpack to {unpacked:,}, more than {MAX_SWELLING} times as many: if that is "
            "meant, write it uncompressed"
        )

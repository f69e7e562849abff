"""What the files of a dataset are called, and which ids can be part of such a name.

The names are those of the tool that the layout comes from, because its readers take them apart.
"""

import os
import re
import unicodedata
from typing import Literal, TypeAlias

PictureFormat: TypeAlias = Literal["jpg", "png"]
"""How a picture is stored; also the end of its file's name."""

_STEP_FOLDER = re.compile(r"proxy_images_sdxl_step([1-9][0-9]{0,8})")
_LONGEST_NAME_BYTES = 255  # of ext4, APFS, NTFS and nearly all others
_LONGEST_ID_BYTES = _LONGEST_NAME_BYTES - len("combined_") - len("_0123456789.jpg")
_CONTROL_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_REFUSED_BY_WINDOWS = frozenset('<>:"|?*')
_ON_WINDOWS = os.name == "nt"


def step_folder_name(step: int) -> str:
    """The folder of a step's pictures."""
    return f"proxy_images_sdxl_step{step}"


def step_of_folder(name: str) -> int | None:
    """The step whose folder has this name; None for another folder."""
    found = _STEP_FOLDER.fullmatch(name)
    return int(found[1]) if found else None


def picture_path(*, step: int, query_id: str, n: int, picture_format: PictureFormat) -> str:
    """A picture's path in the dataset, with forward slashes.

    Two pictures never share one: the number after the last underscore is `n`, what is before it
    the id.
    """
    return f"{step_folder_name(step)}/combined/combined_{query_id}_{n}.{picture_format}"


def id_problem(query_id: str) -> str:
    """What keeps an id from being part of a file's name; empty when nothing does."""
    size_bytes = len(query_id.encode("utf-8", errors="replace"))
    if not query_id:
        return "an empty id"
    if size_bytes > _LONGEST_ID_BYTES:
        return f"id {shown(query_id)} of {size_bytes} bytes, want at most {_LONGEST_ID_BYTES}"
    if query_id in {".", ".."}:
        return f"id {shown(query_id)}, which names a folder"
    if "/" in query_id or "\\" in query_id:
        return f"id {shown(query_id)} with a path separator"
    if any(unicodedata.category(character) in _CONTROL_CATEGORIES for character in query_id):
        return f"id {shown(query_id)} with a control character"
    if query_id != query_id.strip():
        return f"id {shown(query_id)} with space around it"
    if _ON_WINDOWS and refused_by_windows(query_id):
        return f"id {shown(query_id)} with a character that Windows refuses in names"
    return ""


def refused_by_windows(query_id: str) -> bool:
    """Whether an id holds a character that Windows has in no file's name."""
    return not _REFUSED_BY_WINDOWS.isdisjoint(query_id)


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold a text; JSON can spell halves of surrogate pairs, which it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def normal_form(name: str) -> str:
    """A name with its accents in their letters: some file systems give them back beside them."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """What a name is on file systems that tell neither case nor ways to write accents apart."""
    return normal_form(unicodedata.normalize("NFD", name).casefold())


def shown(text: str) -> str:
    """A text in quotes for a message, cut where it is long."""
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}…"

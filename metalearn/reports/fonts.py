"""Names as a figure can show them: in fonts that have their letters, and no longer than there is room for."""

from __future__ import annotations

from functools import lru_cache

from metalearn.reports.text import escape_for_figure

__all__ = ["fit_name", "list_families"]

OTHERS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Source Han Sans", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "IPAGothic", "Hiragino Sans", "PingFang SC", "Yu Gothic", "Microsoft YaHei", "SimHei",
    "Malgun Gothic", "Apple SD Gothic Neo", "Nanum Gothic", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai",
    "Arial Unicode MS", "Unifont",
)  # fmt: skip
"""Fonts with letters that matplotlib's own lacks. Those that are installed are used."""


def fit_name(name: str, room: int) -> str:
    """The name in at most so many characters, its middle left out; letters that no font has are written as their codes.

    Args:
        name: of a class, a file, or whatever else a user has named.
        room: characters.

    Example:
        >>> from metalearn.reports.fonts import fit_name
        >>> fit_name("Greek/character07", 20), fit_name("a_very_long_name_of_a_class", 11)
        ('Greek/character07', 'a_ver…class')
    """
    letters = _find_letters()
    text = "".join(char if ord(char) in letters else char.encode("unicode_escape").decode() for char in name.strip())
    if len(text) > room:
        text = f"{text[: room // 2]}…{text[len(text) - (room - 1) // 2 :]}"
    return escape_for_figure(text)


@lru_cache(maxsize=1)
def list_families() -> list[str]:
    """Families of fonts that show a text together."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in OTHERS if name in installed)]


@lru_cache(maxsize=1)
def _find_letters() -> frozenset[int]:
    from matplotlib import font_manager

    paths = [font_manager.findfont(family) for family in list_families()]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))

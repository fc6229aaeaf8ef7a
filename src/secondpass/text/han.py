"""Chinese characters in another form: traditional ones, and those that PDFs have for others."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from pathlib import Path

_HAN = re.compile("[\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_COMPATIBLE = (*range(0x2E80, 0x2FE0), *range(0xF900, 0xFB00))  # radicals and others, as PDFs have them
# Radicals that NFKC leaves, as PDFs have them too, each with the character that it is by Unicode's
# EquivalentUnifiedIdeograph.txt; those that are no word by themselves are left out.
_RADICALS = (
    "⺄乙⺊卜⺌小⺍小⺎兀⺒巳⺓幺⺜日⺝月⺠民⺧牛⺩王⺫目⺬示⺶羊⺼肉⻁虎⻄西⻅见⻆角⻉贝⻋车⻑長⻓长⻔门⻗雨⻘青⻙韦⻚页⻛风⻜飞⻝食⻢马"
    "⻣骨⻤鬼⻥鱼⻦鸟⻧卤⻨麦⻩黄⻪黾⻫斉⻬齐⻭歯⻮齿⻯竜⻰龙⻱龜⻲亀"
)
# Scripts of Japanese and Korean beside Chinese characters, which stand there for words of these
_OTHERS = re.compile("[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\uac00-\ud7af\uff66-\uff9f]")


def simplified(text: str) -> str:
    """The text in simplified Chinese characters, one for each."""
    return text.translate(_forms()) if not text.isascii() and _HAN.search(text) else text


def has_other(text: str) -> bool:
    """Whether there is Japanese or Korean writing in it, so that its Chinese characters are no Chinese."""
    return _OTHERS.search(text) is not None


@lru_cache(maxsize=1)
def _forms() -> dict[int, str]:
    """Of han.txt: a line is one form and what it stands for, by Unicode's Unihan database (recipes/words/han.py)."""
    lines = Path(__file__).with_name("han.txt").read_text("utf-8").splitlines()
    found = {ord(each): line[0] for line in lines for each in line[1:]}
    compatible = {code: unicodedata.normalize("NFKC", chr(code)).translate(found) for code in _COMPATIBLE}
    radicals = zip(_RADICALS[::2], _RADICALS[1::2], strict=True)
    return found | compatible | {ord(radical): found.get(ord(each), each) for radical, each in radicals}

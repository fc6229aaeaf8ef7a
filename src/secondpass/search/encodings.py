"""Which encoding the bytes of a text are in, where they are not UTF-8: as they are said to be, else the likeliest."""

from __future__ import annotations

import codecs
import re
from contextlib import suppress

SAMPLE = 20_000  # bytes that tell an encoding
MAX_WRONG = 0.1  # of the characters beyond ASCII
_BEYOND_ASCII = re.compile("[^\0-\x7f]")
# Encodings with the most common characters of what is written in them, as the inside of a class, and the least share
# that these have there. Most that is in an East Asian encoding is valid in the others too, and German in GB 18030.
_EAST_ASIAN = {
    "gb18030": "，。、的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之"
    "年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心本前开但因只从想实日",
    "big5": "，。、的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之"
    "年過發後作裡用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心本前開但因只從想實日",
    "cp932": "、。ー\u3041-\u3093\u30a1-\u30f4",
    "euc_jp": "、。ー\u3041-\u3093\u30a1-\u30f4日本大年人中一国会上学生的地方",
    "cp949": "이다는에의을를은가하고지로한도기사어나그리서자있시대수인들아해일정만여제보구부으라마장게스주전조상우원"
    "무성모과비오것저거요문신소니면없내적방선국물생당위안경중동화공행말회개관미와했습합입",
}
USUAL = (
    (_EAST_ASIAN, 0.1),
    ({"gb18030": "\u4e00-\u9fff"}, 0.5),
    ({"cp1251": "а-яёіїє", "koi8-r": "а-яё"}, 0.5),
)


def as_declared(data: bytes, encoding: str) -> str:
    """The text in an encoding that was named in ASCII; nothing where there is none, or data is not in it."""
    try:
        name = codecs.lookup(encoding).name
        if b"a".decode(name) != "a":
            return ""
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        return ""
    for each in ("utf-8", "cp1252") if name == "iso8859-1" else (name,):  # as browsers read it
        with suppress(ValueError):
            return data.decode(each)
    return ""


def guessed(data: bytes) -> str:
    """The text in UTF-8, also where some bytes are wrong, else in what makes most of its characters usual ones.

    That is GB 18030, Big5, those of Japan and Korea, of Cyrillic script, or Windows-1252.
    """
    text = data.decode("utf-8", "replace")
    if MAX_WRONG * len(_BEYOND_ASCII.findall(text)) >= text.count("\ufffd"):
        return text
    for encodings, least in USUAL:
        shares = {encoding: _usual_share(data[:SAMPLE], encoding, usual) for encoding, usual in encodings.items()}
        best = max(shares, key=lambda encoding: shares[encoding])
        if shares[best] >= least:
            return data.decode(best, "replace")
    return data.decode("cp1252", "replace")


def _usual_share(data: bytes, encoding: str, usual: str) -> float:
    """The share of `usual` among what is not ASCII; 0 where data is not in that encoding.

    They count beside one another and beside no ASCII letter, as in no word of a language in Latin script.
    """
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(data)  # which may end within a character
    except UnicodeDecodeError:
        return 0.0
    own = f"(?<![A-Za-z])(?:[{usual}](?=[^\0-\x7f])|(?<=[^\0-\x7f])[{usual}])(?![A-Za-z])"
    return len(re.findall(own, text)) / (len(_BEYOND_ASCII.findall(text)) or 1)

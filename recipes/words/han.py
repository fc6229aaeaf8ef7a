"""Write src/secondpass/text/han.txt from kSimplifiedVariant.txt of Unicode's Unihan database.

    python han.py kSimplifiedVariant.txt > ../../src/secondpass/text/han.txt

Each line is a simplified Chinese character and those that are written so. Of several simplified forms the first
counts that is another character; characters beyond the Basic Multilingual Plane, which few write, are left out.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

_LINE = re.compile(r"^U\+([0-9A-F]{4})(?: .)?\tkSimplifiedVariant\t(.+)", re.MULTILINE)  # the character may be there
_NUMBER = re.compile(r"U\+([0-9A-F]{4})\b")


def simplified(text: str) -> dict[str, str]:
    """Traditional characters with their simplified form, which has no simplified form of its own."""
    forms = {
        chr(int(number, 16)): [chr(int(each, 16)) for each in _NUMBER.findall(listed)]
        for number, listed in _LINE.findall(text)
    }

    def last(character: str, seen: tuple[str, ...] = ()) -> str:
        others = (form for form in forms.get(character, ()) if form != character and form not in seen)
        return next((last(form, (*seen, character)) for form in others), character)

    return {character: form for character in forms if (form := last(character)) != character}


def main() -> None:
    groups = defaultdict(list)
    for character, form in simplified(Path(sys.argv[1]).read_text("utf-8")).items():
        groups[form].append(character)
    sys.stdout.write("".join(f"{form}{''.join(sorted(groups[form]))}\n" for form in sorted(groups)))


if __name__ == "__main__":
    main()

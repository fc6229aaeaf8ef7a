"""Which script and which language texts are in, as far as that tells whether a model can read them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice

from secondpass.text.documents import folded

MAX_LETTERS = 100  # of a text: enough to know, and the names of characters take a microsecond each
LAST_LATIN = "\u024f"  # most letters need no name to be known
# What a person calls a script whose characters Unicode names otherwise.
NAMES = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
WORTH = 3  # letters of an alphabet: what one character of these scripts says
LANGUAGE_SAMPLE = 600  # characters that tell a text's language
# Not compiled here, which would take 10 ms of a start that rarely needs them; `re` remembers what it compiled.
_SCRIPTS = {
    name: f"[{characters}]"
    for name, characters in {
        "zh": "\u3400-\u4dbf\u4e00-\u9fff",
        "ja": "\u3040-\u30ff",
        "ko": "\u1100-\u11ff\uac00-\ud7af",
        "ru": "\u0400-\u052f",
        "ar": "\u0600-\u06ff",
        "hi": "\u0900-\u097f",
        "th": "\u0e00-\u0e7f",
        "el": "\u0370-\u03ff",
        "he": "\u0590-\u05ff",
        "bn": "\u0980-\u09ff",
        "ta": "\u0b80-\u0bff",
        "te": "\u0c00-\u0c7f",
        "ka": "\u10a0-\u10ff",
        "hy": "\u0530-\u058f",
    }.items()
}
_FOREIGN = "[\u0370-\u1dff\u3040-\ud7ff]+"
_LATIN = "[A-Za-z\u00c0-\u024f]"
_TAG = "[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*"
_LATIN_WORD = "[a-z\u00df-\u024f\u1ea0-\u1eff]+"
COMMON_WORDS = {
    name: frozenset(words.split())
    for name, words in {
        "en": "the and of to in is that it for with was are this on be as by from or an not you can a i do does did "
        "how what when where which who why has have if at my your there",
        "de": "der die und das ist nicht ein eine mit von zu den auf für sich dem im des auch werden als oder wird",
        "fr": "le la les et des est une dans que pour pas sur du qui au en un par avec ce il sont ou",
        "es": "el la los las de que y una en por con para del es se como más un su al o no lo",
        "it": "il di che è per una non sono della con gli nel anche più un la del si da le i in",
        "pt": "o os de que não uma para com do da em por são mais ao um e a as no na dos se",
        "nl": "de het een van en niet dat voor met zijn op is ook aan te in er door worden als",
        "pl": "nie jest się na do że jak przez oraz dla z w i to od po są który",
        "tr": "bir ve bu için ile olarak daha çok gibi olan da de en sonra kadar ise",
        "sv": "och att det som är en på inte för med av den till har ett om var",
        "vi": "và của là không được các một cho trong có những người với này để",
        "id": "yang dan di ini untuk dengan tidak dari adalah pada dalam ke akan atau itu",
    }.items()
}
_LANGUAGES = {
    word: tuple(name for name in COMMON_WORDS if word in COMMON_WORDS[name]) for word in chain(*COMMON_WORDS.values())
}
# Letters that of these languages one alone has, or one far more than the others.
LETTERS = {
    letter: name
    for name, letters in {
        "de": "ß",
        "es": "ñ",
        "pt": "ãõ",
        "pl": "łżźąęśćń",
        "tr": "ğış",
        "sv": "å",
        "vi": "ơưđăạảấầẩậắằẵặẹẻẽếềểễệọỏốồổộớờởợụủứừữựỳỷỹ",
    }.items()
    for letter in letters
}
# Of one of these languages alone, and no words of English.
QUESTION_WORDS = {
    word: name
    for name, words in {
        "de": "wie warum wann wer wen wem welche welcher welches wo wohin woher wieso weshalb wieviel",
        "fr": "pourquoi quand quel quelle quels quelles où combien qui quoi",
        "es": "qué cómo cuál cuáles cuándo dónde quién quiénes cuánto cuántos cuántas",
        "it": "perché dove quale quali chi quanti",
        "pt": "onde qual quais quantos quem",
        "nl": "hoe waarom wanneer welk waar hoeveel",
        "pl": "jak dlaczego kiedy gdzie kto ile",
        "tr": "nasıl neden nerede niçin kim hangi",
        "sv": "hur varför när vilken vilka",
        "id": "bagaimana apa siapa mengapa kapan berapa",
    }.items()
    for word in words.split()
}
# What people call a language instead of its code of ISO 639-1: its names, the one in English first, and other codes.
LANGUAGE_NAMES = {
    "ar": "Arabic العربية عربي ara arb",
    "bn": "Bengali Bangla বাংলা ben",
    "zh": "Chinese Mandarin 中文 汉语 漢語 华语 華語 国语 國語 普通话 简体中文 繁體中文 chi zho cmn cn",
    "nl": "Dutch Nederlands dut nld",
    "en": "English eng",
    "fr": "French Français fre fra",
    "ka": "Georgian ქართული geo kat",
    "de": "German Deutsch ger deu",
    "el": "Greek Ελληνικά gre ell",
    "he": "Hebrew עברית heb",
    "hi": "Hindi हिन्दी हिंदी hin",
    "hy": "Armenian Հայերեն arm hye",
    "id": "Indonesian Indonesia ind",
    "it": "Italian Italiano ita",
    "ja": "Japanese 日本語 日语 日文 jpn jp",
    "ko": "Korean 한국어 韩语 kor",
    "pl": "Polish Polski pol",
    "pt": "Portuguese Português por",
    "ru": "Russian Русский rus",
    "es": "Spanish Español Castellano spa",
    "sv": "Swedish Svenska swe",
    "ta": "Tamil தமிழ் tam",
    "te": "Telugu తెలుగు tel",
    "th": "Thai ไทย ภาษาไทย tha",
    "tr": "Turkish Türkçe tur",
    "vi": "Vietnamese Tiếng_Việt vie",
}
MAX_TOLD = 16  # passages whose language is asked for, spread over a list


@dataclass(frozen=True)
class Unread:
    """Texts in a script that a model cannot read: its name, and `where` they are ("the query")."""

    script: str
    where: str


def foreign_script(text: str, scripts: Collection[str]) -> str | None:
    """The script that `text` is in for the most part, where that is none of `scripts`; None otherwise.

    scripts are first words of Unicode's names of letters, such as LATIN.
    """
    if "LATIN" in scripts and text.isascii():
        return None
    letters = islice((letter for letter in text if letter.isalpha()), MAX_LETTERS)
    counts: Counter[str] = Counter()
    for letter in letters:
        script = "LATIN" if letter <= LAST_LATIN else unicodedata.name(letter, "?").split()[0]
        counts[script] += WORTH if script in NAMES else 1
    foreign = Counter({script: count for script, count in counts.items() if script not in scripts})
    if foreign.total() * 2 <= counts.total():
        return None
    script = foreign.most_common(1)[0][0]
    return NAMES.get(script, script.capitalize())


def unread(query: str, passages: Sequence[str], scripts: Collection[str] | None) -> Unread | None:
    """What a model for some scripts alone cannot read of these texts; None where it reads them all."""
    if scripts is None:
        return None
    asked = foreign_script(query, scripts)
    found = Counter(script for text in passages if (script := foreign_script(text, scripts)))
    if asked is not None:
        return Unread(asked, "the query")
    if not found:
        return None
    return Unread(found.most_common(1)[0][0], f"{found.total()} of {len(passages)} passages")


def language_of(text: str) -> str:
    """The language of a text as ISO 639-1 has it, by script, common words and letters; "" where they do not tell.

    Han with some kana is Japanese, else Chinese. A script of several languages counts as the one that most write in
    it, Cyrillic as Russian; Latin is told apart by the words of COMMON_WORDS.
    """
    sample = text[:LANGUAGE_SAMPLE]
    foreign = "" if sample.isascii() else "".join(re.findall(_FOREIGN, sample))
    if 3 * len(foreign) > len(re.findall(_LATIN, sample)):  # Latin names and code stand in texts of all scripts
        counts = {name: len(re.findall(pattern, foreign)) for name, pattern in _SCRIPTS.items()}
        counts["ja"] += counts["zh"] if 10 * counts["ja"] > counts["zh"] else 0
        found = max(counts, key=lambda name: counts[name])
        if counts[found]:
            return found
    sample = sample.lower()
    hits = Counter(name for word in re.findall(_LATIN_WORD, sample) for name in _LANGUAGES.get(word, ()))
    if not sample.isascii():
        hits.update(LETTERS[letter] for letter in sample if letter in LETTERS)
    most = max(hits.values(), default=0)
    told = [name for name in COMMON_WORDS if hits[name] == most > 1]  # English first, whose words others have too
    return told[0] if told else ""


def language_code(name: str) -> str:
    """The code of a language by a tag such as en-US or zh_Hant, or by a name; others stay as they are."""
    told = re.split("[-_]", name)[0].lower() if re.fullmatch(_TAG, name) else name
    return _codes().get(folded(told.replace("_", " ")), told)


def checked_language(name: str) -> str:
    """As `language_code`. Raises ValueError for what names no language."""
    code = language_code(name)
    if not re.fullmatch(_TAG, code):
        names = ", ".join(sorted(names.split()[0] for names in LANGUAGE_NAMES.values()))
        raise ValueError(
            f"language is {name!r}; give its code of ISO 639-1, as en or zh, or one of the names {names}"
        )
    return code


@cache
def _codes() -> dict[str, str]:
    return {folded(name.replace("_", " ")): code for code, names in LANGUAGE_NAMES.items() for name in names.split()}


def asked_language(query: str) -> str:
    """The language of a question: where its words do not tell, that of a question word that it begins with."""
    first = re.match(_LATIN_WORD, query.lower().lstrip(" ¿¡\"'"))
    return language_of(query) or ("" if first is None else QUESTION_WORDS.get(first[0], ""))


def is_elsewhere(query: str, passages: Sequence[str], languages: Collection[str] | None) -> bool:
    """Whether the query, or else most of the passages, are in other languages, as far as their words tell."""
    if languages is None:
        return False
    if (asked := asked_language(query)) and asked not in languages:
        return True
    told = [found for text in passages[:: len(passages) // MAX_TOLD + 1] if (found := language_of(text))]
    return 2 * sum(found not in languages for found in told) > len(told)


def suits(
    query: str, passages: Sequence[str], scripts: Collection[str] | None, languages: Collection[str] | None
) -> bool:
    """Whether these texts are in scripts that a model reads, and in languages that it reads best; None: not known."""
    return unread(query, passages, scripts) is None and not is_elsewhere(query, passages, languages)


def warning_of(found: Unread, model: str) -> str:
    """What a person should know before reading the scores."""
    return (
        f"the model {_cannot_read(found, model)}, so these scores mean nothing; for many languages: pip install "
        "secondpass-multilingual (in a clone: ./packages/multilingual), then leave the model out, or name it: "
        "--model multilingual, Reranker('multilingual')"
    )


def vectors_warning(found: Unread, model: str) -> str:
    """What a person should know before using the vectors."""
    return (
        f"the embedder {_cannot_read(found, model)}, so its vectors mean nothing; for many languages: pip install "
        "secondpass-multilingual (in a clone: ./packages/multilingual), then Embedder('multilingual'), or of an "
        "index: update --embedder multilingual"
    )


def _cannot_read(found: Unread, model: str) -> str:
    verb = "is" if found.where == "the query" else "are"
    return f"{model!r} cannot read {found.script} script, in which {found.where} {verb}"

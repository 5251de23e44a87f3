"""The language that a text is written in, by the commonest words of languages that share a script."""

import re
from collections import Counter

BEGINNING = 400  # characters of a text that are looked at
HITS, KINDS = 20, 5  # words of a language in a column, and different ones, that tell its language: Los Angeles is no es
MARGIN = 10  # times as many as those of the language that is said
# Different words on both sides together that tell that a row is swapped. Of 231,000 pairs of Tatoeba, PUD and FLORES in
# en, de, fr and ro, and of 275,000 of FLORES in all languages here, none is told to be swapped when it isn't.
ROW_KINDS = 3

# Codes of ISO 639, and common words, each of which is common in one of these languages only. Those so near to another
# that they read like it are left out: af, az, bs, gl, ms, nn, sr.
_COMMON = {
    "en eng": "the that with from you they this which these were their would what there when been she your about",
    "de deu ger": "und zu ist nicht ich von auf mit sich eine für dass sind oder wird auch wir haben einen nach",
    "fr fra fre": "une dans pour vous sont été avec être cette très nous elle était leur ils peut deux aux ces",
    "es spa": "los las muy pero también cuando fue había hasta esto ella usted años donde puede tiene aunque y",
    "it ita": "che è della sono non nel dei gli delle anche questo questa hanno più degli molto dal nella perché",
    "pt por": "em uma não são você ao foi pode também isso até eles pelo muito meu foram há ela pela",
    "ca cat": "amb els més dels són però aquest aquesta seva molt perquè això només poden vaig estat fins pel",
    "ro ron rum": "în și şi pentru să pe că sunt fost după poate toate când dacă cele iar acest unei multe prin",
    "nl nld dut": "het een zijn niet voor aan naar deze bij maar kunnen wordt ook heeft hebben geen ik wij werd",
    "sv swe": "och att är för inte från till när även jag mycket också hade vara över måste finns något detta",
    "da dan": "af meget nogle havde bliver blevet uden mellem ud noget måske hvad vores tilbage hende igen siger",
    "no nb nor nob": "å ble seg etter hadde noen enn noe opp deg hva blitt uten mye gjennom mellom gjør nå annet",
    "fi fin": "että ovat joka mutta kuin myös hän jotka koska vain minä sinä tämä mitä olen niin siitä sekä",
    "pl pol": "się jest że są lub przez gdy które może dla tylko był czy oraz jego bardzo także ponieważ jestem",
    "cs ces cze": "nebo jsou které také byl být pokud který při když může jsem protože velmi není něco jsme více",
    "sk slk slo": "alebo sú aj keď ktoré čo ktorý boli môže tiež iba veľmi bol ktorá majú viac podľa pretože ešte",
    "hr hrv": "ili koji što koje koja će nakon nije mogu više prema jer također zbog prije sve kada ovo još",
    "hu hun": "hogy egy vagy volt olyan azt amely csak szerint több lehet mert minden nagyon ezt még nincs ez",
    "tr tur": "bir için bu daha çok olarak veya gibi değil kadar olan sonra büyük ancak şey onun bunu diğer",
    "id ind": "yang dari untuk dengan ini tidak atau dalam mereka adalah akan telah saya lebih oleh karena bisa",
    "vi vie": "và của những được không người trong này với có các một đã khi bạn đến nhưng tôi rất",
    "ru rus": "что это как из чтобы они также его когда если были только может очень нет быть есть мне",
    "uk ukr": "що та є щоб його вони також якщо бути який коли після дуже цей їх лише було від",
    "bg bul": "че като през това които след към има трябва когато тези беше който със ако бъде си този",
}
_CODES = {code: codes.split()[0] for codes in _COMMON for code in codes.split()}
_WORDS = {codes.split()[0]: frozenset(words.split()) for codes, words in _COMMON.items()}
_LANGUAGES = {word: language for language, words in _WORDS.items() for word in words}


def language_of(code: str) -> str:
    """Return the short code of a language by any of its codes (de, de_DE, deu_Latn); "" of one not known here."""
    return _CODES.get(re.split("[-_]", code)[0], "")


def common_words(text: str) -> list[str]:
    """Return those words at the beginning of the text that are common ones of any language."""
    return [word for word in _words(text) if word in _LANGUAGES]


def other_language(counts: Counter[str], said: str) -> str:
    """Return the language whose common words these clearly are, if it isn't the one said; "" otherwise."""
    hits, kinds = Counter[str](), Counter[str]()
    for word, count in counts.items():
        hits[_LANGUAGES[word]] += count
        kinds[_LANGUAGES[word]] += 1
    if not said or not hits:
        return ""
    (best, most), (_, next_most) = [*hits.most_common(2), ("", 0)][:2]
    clear = most >= max(HITS, MARGIN * hits[said], 2 * next_most) and kinds[best] >= KINDS
    return best if clear else ""


def are_swapped(source: str, target: str, languages: tuple[str, str]) -> bool:
    """Return whether each text has common words of the other's language and none of its own."""
    first = _kinds(source, languages[1], languages[0])
    second = first and _kinds(target, languages[0], languages[1])
    return second > 0 and first + second >= ROW_KINDS


def _kinds(text: str, like: str, unlike: str) -> int:
    """Return how many different words of one language the text has; 0 if it has any of the other."""
    words = _words(text)
    return len(_WORDS[like].intersection(words)) if _WORDS[unlike].isdisjoint(words) else 0


def _words(text: str) -> list[str]:
    return text[:BEGINNING].lower().split()

"""What is written on the documents: goods, places, dates, prices, numbers, in six languages.

Goods are named as in the `emoji` package (Unicode CLDR), places, months, weekdays, dates and prices
as in CLDR by `babel`; headings, labels and sentences are ours (documents_words). Goods, places,
months, headings and sentences of one split never occur in another.

Arabic documents follow Egypt (``ar_EG``): Arabic-Indic digits, pounds, weeks from Saturday.
"""

import random
from calendar import Calendar
from datetime import date, time, timedelta
from decimal import Decimal
from functools import cache, cached_property

import emoji
from babel import Locale
from babel.dates import format_date, format_skeleton, format_time, get_timezone_location
from babel.numbers import format_currency, format_decimal

if __package__:
    from data import documents_words as words
else:
    import documents_words as words

from llava_mole.languages import LANGUAGES

LOCALES = {
    "en": "en_US",
    "zh": "zh_CN",
    "pt": "pt_BR",
    "ar": "ar_EG",
    "tr": "tr_TR",
    "ru": "ru_RU",
}
CURRENCIES = {"en": "USD", "zh": "CNY", "pt": "BRL", "ar": "EGP", "tr": "TRY", "ru": "RUB"}
_EASTERN = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
_UNPRINTED = str.maketrans({"\u200e": "", "\u200f": "", "\u00a0": " ", "\u202f": " "})

GOODS = {
    "train": (
        "🍇🍈🍉🍊🍋🍍🥭🍒🍓🫐🥝🍅🫒🥑🍆🥔🥕🥒🥦🧄🧅🥜🌰🍞"
        "🥐🥞🧇🥩🥪🥚🧈🍪🍫🍭🧀🪑🪣🧼🪥🖌📎✂🔨🔧🧣🧥🧦👗"
    ),
    "dev": "🍌🍐🍑🥥🌽🥨🥫🍕🍦🍩🥧🪟🧺🥣📏🪚🧤👖",
    "test": "🍎🥬🫘🥖🍔🍟🥗🍿🍬🍯🍰🪞🪒📓🪛👓👔🎒",
}
"""Emoji whose names are the goods."""

PLACES = {
    "train": (
        "Europe/Moscow", "Europe/Istanbul", "Africa/Cairo", "America/Sao_Paulo", "Asia/Shanghai",
        "America/New_York", "Europe/London", "Europe/Berlin", "Europe/Madrid", "Europe/Rome",
        "Asia/Baghdad", "Asia/Dubai", "Asia/Hong_Kong", "America/Manaus", "America/Recife",
        "America/Chicago", "Europe/Minsk", "Asia/Omsk", "Africa/Tunis", "Asia/Tokyo",
        "Europe/Athens", "Europe/Vienna", "Asia/Seoul", "America/Denver", "Africa/Algiers",
        "Asia/Riyadh", "America/Fortaleza", "Europe/Oslo",
    ),
    "dev": (
        "Europe/Paris", "Asia/Beirut", "America/Bogota", "Asia/Macau", "America/Detroit",
        "Europe/Sofia", "Asia/Tomsk", "Africa/Tripoli", "Europe/Dublin",
    ),
    "test": (
        "Europe/Lisbon", "Asia/Amman", "America/Lima", "Asia/Taipei", "America/Boise",
        "Europe/Prague", "Asia/Yakutsk", "Africa/Khartoum", "Europe/Warsaw",
    ),
}  # fmt: skip
"""Time zones, whose cities CLDR names."""

MONTHS = {"train": (1, 3, 4, 6, 7, 9, 10), "dev": (2, 11), "test": (5, 8, 12)}
YEARS = {"train": range(2012, 2022), "dev": range(2022, 2024), "test": range(2024, 2027)}


class Contents:
    """Draws what is written on one document of a language and split.

    Attributes:
        place: of the language in ``LANGUAGES``.
    """

    def __init__(self, language: str, split: str, rng: random.Random) -> None:
        self.language, self.split, self.rng = language, split, rng
        self.locale = Locale.parse(LOCALES[language])
        self.place = LANGUAGES.index(language)

    def heading(self, document: str) -> str:
        return words.HEADINGS[document][self.split][self.place]

    def label(self, key: str) -> str:
        return words.LABELS[key][self.place]

    def sentences(self) -> list[str]:
        """All of the split, in random order."""
        sentences = [texts[self.place] for texts in words.SENTENCES[self.split]]
        self.rng.shuffle(sentences)
        return sentences

    def sign(self, key: str) -> str:
        return words.SIGNS[key][self.place]

    def goods(self, count: int) -> list[str]:
        return [
            good_name(sign, self.language) for sign in self.rng.sample(GOODS[self.split], count)
        ]

    def places(self, count: int) -> list[str]:
        zones = self.rng.sample(PLACES[self.split], count)
        return [place_name(zone, self.language) for zone in zones]

    def amount(self) -> Decimal:
        """A price of one thing: two decimals, the last of them 0 or 5."""
        return Decimal(self.rng.randrange(20, 1999)) / 20

    def price(self, amount: Decimal) -> str:
        return self._digits(
            format_currency(
                amount, CURRENCIES[self.language], locale=self.locale, numbering_system="default"
            )
        )

    def bare_price(self, amount: Decimal) -> str:
        return self._digits(
            format_decimal(amount, "#,##0.00", locale=self.locale, numbering_system="default")
        )

    def number(self, value: int | str) -> str:
        """In the digits that the language's documents are written in."""
        return self._digits(str(value))

    def date(self) -> str:
        day = date(self.rng.choice(YEARS[self.split]), self.rng.choice(MONTHS[self.split]), 1)
        day += timedelta(days=self.rng.randrange(28))
        return self._digits(format_date(day, "medium", locale=self.locale))

    def time(self) -> str:
        clock = time(self.rng.randrange(6, 23), self.rng.randrange(0, 60, 5))
        return self._digits(format_time(clock, "HH:mm", locale=self.locale))

    @cached_property
    def month_page(self) -> tuple[str, list[str], list[list[str]]]:
        """(month and year, weekdays from the locale's first, weeks of day numbers or "")."""
        year, month = self.rng.choice(YEARS[self.split]), self.rng.choice(MONTHS[self.split])
        first = self.locale.first_week_day
        names = self.locale.days["stand-alone"][
            "narrow" if self.language in ("ar", "zh") else "short"
        ]
        weekdays = [names[(first + day) % 7].rstrip(".") for day in range(7)]
        weeks = [
            [self.number(day) if day else "" for day in week]
            for week in Calendar(first).monthdayscalendar(year, month)
        ]
        title = self._digits(
            format_skeleton("yMMMM", date(year, month, 1), locale=self.locale)
        ).removesuffix(" г.")
        return title[:1].upper() + title[1:], weekdays, weeks

    def _digits(self, text: str) -> str:
        text = text.translate(_UNPRINTED)
        return text.translate(_EASTERN) if self.language == "ar" else text


@cache
def good_name(sign: str, language: str) -> str:
    """The emoji's CLDR name, as a receipt has it."""
    emoji.config.load_language(list(LANGUAGES))
    name = emoji.EMOJI_DATA.get(sign, emoji.EMOJI_DATA.get(sign + "\ufe0f"))[language]
    return name.strip(":").replace("_", " ")


@cache
def place_name(zone: str, language: str) -> str:
    """The city for which the time zone is named."""
    return get_timezone_location(zone, locale=LOCALES[language], return_city=True)

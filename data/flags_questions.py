"""What is asked about flags and maps, in six languages: templates and labels.

``TRAINED`` forms appear in ``train.json``, ``HELD_OUT`` forms only in the evaluation files; the two
never overlap. Rules a new form must keep, so that what is filled in fits without grammar breaking:

* the bare answer is a complete reply: Russian and Turkish forms ask for a nominative ("Какая
  страна…", "…ülke hangisidir?"), never for a case that the country's name would have to take;
* ``{colour}`` is what :func:`colour_in_question` gives and stands where its gender is fixed: with
  "цвет" in Russian, with "اللون" and the article in Arabic, after "o" or bare in Portuguese;
* no Turkish question particle follows a filled-in word; a Chinese form that wants yes or no asks
  是不是 or 是…吗, so that 是 and 不是 answer it.
"""

from llava_mole.languages import LANGUAGES

KINDS = ("country", "main_colour", "has_colour", "stripes", "world_part")

Forms = dict[str, dict[str, tuple[str, ...]]]

TRAINED: Forms = {
    "country": {
        "en": (
            "Which country is this the flag of?",
            "What country does this flag belong to?",
            "Name the country that uses this flag.",
            "Which country has a flag like this?",
        ),
        "zh": (
            "这是哪个国家的国旗？",
            "图中的旗帜属于哪个国家？",
            "请说出使用这面旗帜的国家。",
            "哪个国家的国旗是这样的？",
        ),
        "pt": (
            "Que país usa esta bandeira?",
            "Que país tem esta bandeira?",
            "Diga o nome do país que usa esta bandeira.",
            "A bandeira da imagem representa que país?",
        ),
        "ar": (
            "علم أي دولة هذا؟",
            "ما الدولة التي يمثلها هذا العلم؟",
            "ما اسم الدولة صاحبة هذا العلم؟",
            "إلى أي دولة ينتمي العلم الظاهر في الصورة؟",
        ),
        "tr": (
            "Bayrağı bu olan ülke hangisidir?",
            "Bu bayrağı kullanan ülkenin adı nedir?",
            "Bayrağı böyle olan ülkenin adı nedir?",
            "Resimde bayrağı görülen ülke hangisidir?",
        ),
        "ru": (
            "Какая страна использует этот флаг?",
            "Как называется страна, чей флаг показан на картинке?",
            "Какое государство имеет такой флаг?",
            "Какая страна обозначается этим флагом?",
        ),
    },
    "main_colour": {
        "en": (
            "What colour covers most of this flag?",
            "Which colour takes up the largest part of the flag?",
            "What is the main colour of this flag?",
        ),
        "zh": (
            "这面旗帜主要是什么颜色？",
            "哪种颜色占这面旗的面积最大？",
            "旗帜的主要颜色是什么？",
        ),
        "pt": (
            "Que cor ocupa a maior parte desta bandeira?",
            "Qual é a cor principal da bandeira?",
            "Que cor predomina nesta bandeira?",
        ),
        "ar": (
            "ما اللون الذي يغطي معظم هذا العلم؟",
            "ما اللون الرئيسي لهذا العلم؟",
            "أي لون يشغل أكبر مساحة من العلم؟",
        ),
        "tr": (
            "Bu bayrağın büyük bölümü hangi renk?",
            "Bayrağın ana rengi nedir?",
            "Bu bayrakta en çok yer kaplayan renk hangisidir?",
        ),
        "ru": (
            "Какой цвет занимает большую часть флага?",
            "Какой цвет преобладает на этом флаге?",
            "Какой цвет на флаге главный?",
        ),
    },
    "has_colour": {
        "en": (
            "Is there any {colour} on this flag?",
            "Is {colour} one of the colours of this flag?",
            "Does this flag have {colour} in it?",
            "Can {colour} be seen anywhere on the flag?",
        ),
        "zh": (
            "{colour}是这面旗帜的颜色之一吗？",
            "这面旗帜上是不是有{colour}？",
            "旗帜的颜色是不是包括{colour}？",
            "{colour}是不是出现在这面旗上？",
        ),
        "pt": (
            "Há {colour} nesta bandeira?",
            "O {colour} é uma das cores desta bandeira?",
            "Esta bandeira tem {colour}?",
            "Aparece {colour} em alguma parte da bandeira?",
        ),
        "ar": (
            "هل يوجد اللون {colour} في هذا العلم؟",
            "هل اللون {colour} من ألوان هذا العلم؟",
            "هل يظهر اللون {colour} على هذا العلم؟",
            "هل في العلم شيء من اللون {colour}؟",
        ),
        "tr": (
            "Bu bayrakta {colour} renk var mı?",
            "Bayrağın renkleri arasında {colour} renk bulunuyor mu?",
            "Bu bayrakta {colour} renk kullanılmış mı?",
            "Bayrağın üzerinde {colour} renk görülüyor mu?",
        ),
        "ru": (
            "Есть ли на этом флаге {colour} цвет?",
            "Верно ли, что на флаге есть {colour} цвет?",
            "Используется ли на этом флаге {colour} цвет?",
            "Виден ли где-нибудь на флаге {colour} цвет?",
        ),
    },
    "stripes": {
        "en": (
            "Are the stripes of this flag horizontal or vertical?",
            "Which way do the stripes of the flag run: are they vertical or horizontal?",
            "What kind of stripes does this flag have, horizontal or vertical ones?",
        ),
        "zh": (
            "这面旗帜的条纹是横向还是纵向？",
            "旗上的条纹是纵向还是横向？",
            "请看这面旗：条纹是横向的还是纵向的？",
        ),
        "pt": (
            "As faixas desta bandeira são horizontais ou verticais?",
            "As faixas da bandeira são verticais ou horizontais?",
            "Como são as faixas desta bandeira: horizontais ou verticais?",
        ),
        "ar": (
            "هل خطوط هذا العلم أفقية أم عمودية؟",
            "هل الخطوط في العلم عمودية أم أفقية؟",
            "كيف هي خطوط هذا العلم: أفقية أم عمودية؟",
        ),
        "tr": (
            "Bu bayraktaki şeritler yatay mı, dikey mi?",
            "Bayrağın şeritleri dikey mi, yatay mı?",
            "Bu bayrağın şeritleri nasıl: yatay mı, dikey mi?",
        ),
        "ru": (
            "Полосы на этом флаге горизонтальные или вертикальные?",
            "Какие полосы на флаге: вертикальные или горизонтальные?",
            "Посмотрите на флаг: полосы на нём горизонтальные или вертикальные?",
        ),
    },
    "world_part": {
        "en": (
            "Which part of the world is marked on the map?",
            "The marker stands in one part of the world. Which one?",
            "What part of the world does the marker on this map show?",
        ),
        "zh": (
            "地图上标出的是世界的哪个部分？",
            "地图上的标记位于哪个大洲？",
            "请看地图上的标记：这是哪个大洲？",
        ),
        "pt": (
            "Que parte do mundo está marcada no mapa?",
            "A marca no mapa indica que parte do mundo?",
            "Veja a marca no mapa: que parte do mundo é essa?",
        ),
        "ar": (
            "أي جزء من العالم محدَّد على الخريطة؟",
            "إلى أي جزء من العالم تشير العلامة على الخريطة؟",
            "انظر إلى العلامة على الخريطة: أي جزء من العالم هذا؟",
        ),
        "tr": (
            "Haritada dünyanın hangi bölgesi işaretlenmiş?",
            "Haritadaki işaretin gösterdiği bölge dünyanın hangi bölgesidir?",
            "Haritadaki işarete bakın: burası dünyanın hangi bölgesi?",
        ),
        "ru": (
            "Какая часть мира отмечена на карте?",
            "Посмотрите на метку на карте: какая это часть мира?",
            "Какая часть мира указана меткой на карте?",
        ),
    },
}

HELD_OUT: Forms = {
    "country": {
        "en": (
            "Which nation does this flag represent?",
            "Tell me the country this flag stands for.",
        ),
        "zh": ("这面旗帜代表哪个国家？", "请问图中是哪国国旗？"),
        "pt": ("Qual é o país desta bandeira?", "Que país é representado por esta bandeira?"),
        "ar": ("ما الدولة التي ترفع هذا العلم؟", "لأي دولة هذا العلم؟"),
        "tr": (
            "Bu bayrağa sahip olan ülke hangisi?",
            "Görseldeki bayrağı taşıyan ülke hangisidir?",
        ),
        "ru": ("Какая страна поднимает такой флаг?", "Что за страна представлена этим флагом?"),
    },
    "main_colour": {
        "en": ("Name the colour that fills most of the flag.",),
        "zh": ("请说出这面旗上面积最大的颜色。",),
        "pt": ("Diga a cor que mais aparece na bandeira.",),
        "ar": ("اذكر اللون الغالب على هذا العلم.",),
        "tr": ("Bayrakta ağır basan renk hangisi?",),
        "ru": ("Назовите основной цвет этого флага.",),
    },
    "has_colour": {
        "en": ("Do the colours of this flag include {colour}?",),
        "zh": ("这面旗的配色中是不是含有{colour}？",),
        "pt": ("As cores desta bandeira incluem o {colour}?",),
        "ar": ("هل تتضمن ألوان هذا العلم اللون {colour}؟",),
        "tr": ("Bu bayrağın renklerinden biri {colour} olabilir mi?",),
        "ru": ("Входит ли в цвета этого флага {colour} цвет?",),
    },
    "stripes": {
        "en": ("Look at the flag's stripes. Are they vertical, or are they horizontal?",),
        "zh": ("图中旗帜的条纹方向是纵向还是横向？",),
        "pt": ("Observe a bandeira: as faixas são verticais ou horizontais?",),
        "ar": ("انظر إلى العلم: هل خطوطه عمودية أم أفقية؟",),
        "tr": ("Bayrağa bakın: şeritler dikey mi, yatay mı?",),
        "ru": ("Как расположены полосы на флаге: они вертикальные или горизонтальные?",),
    },
    "world_part": {
        "en": ("Name the part of the world where the marker is.",),
        "zh": ("标记所在的是世界的哪个大洲？",),
        "pt": ("Diga que parte do mundo aparece marcada neste mapa.",),
        "ar": ("ما الجزء من العالم الذي تقع فيه العلامة؟",),
        "tr": ("İşaretin bulunduğu yer dünyanın hangi bölgesidir?",),
        "ru": ("Назовите часть мира, которая отмечена на карте.",),
    },
}

Labels = dict[str, tuple[str, ...]]
"""Word by key, in the order of ``LANGUAGES``."""

COLOURS: Labels = {
    "red": ("red", "红色", "vermelho", "أحمر", "kırmızı", "красный"),
    "blue": ("blue", "蓝色", "azul", "أزرق", "mavi", "синий"),
    "green": ("green", "绿色", "verde", "أخضر", "yeşil", "зелёный"),
    "yellow": ("yellow", "黄色", "amarelo", "أصفر", "sarı", "жёлтый"),
    "white": ("white", "白色", "branco", "أبيض", "beyaz", "белый"),
    "black": ("black", "黑色", "preto", "أسود", "siyah", "чёрный"),
}
"""Answers to a colour question. Light blue is not asked about: Russian "голубой" is not "синий"."""

STRIPES: Labels = {
    "horizontal": ("horizontal", "横向", "horizontais", "أفقية", "yatay", "горизонтальные"),
    "vertical": ("vertical", "纵向", "verticais", "عمودية", "dikey", "вертикальные"),
}

PARTS: Labels = {
    "africa": ("Africa", "非洲", "África", "أفريقيا", "Afrika", "Африка"),
    "asia": ("Asia", "亚洲", "Ásia", "آسيا", "Asya", "Азия"),
    "europe": ("Europe", "欧洲", "Europa", "أوروبا", "Avrupa", "Европа"),
    "north_america": (
        "North America", "北美洲", "América do Norte", "أمريكا الشمالية", "Kuzey Amerika",
        "Северная Америка",
    ),
    "south_america": (
        "South America", "南美洲", "América do Sul", "أمريكا الجنوبية", "Güney Amerika",
        "Южная Америка",
    ),
    "oceania": ("Oceania", "大洋洲", "Oceania", "أوقيانوسيا", "Okyanusya", "Австралия и Океания"),
}  # fmt: skip
"""The languages' own names, CLDR's but for Russian, where Australia is not in "Океания"."""

YES_NO: dict[str, tuple[str, str]] = {
    "en": ("Yes", "No"),
    "zh": ("是", "不是"),
    "pt": ("Sim", "Não"),
    "ar": ("نعم", "لا"),
    "tr": ("Evet", "Hayır"),
    "ru": ("Да", "Нет"),
}


def label(labels: Labels, key: str, language: str) -> str:
    """The word for ``key`` in ``language``."""
    return labels[key][LANGUAGES.index(language)]


def colour_in_question(colour: str, language: str) -> str:
    """The colour as it stands in a question: in Arabic after "اللون", with the article."""
    word = label(COLOURS, colour, language)
    return f"ال{word}" if language == "ar" else word

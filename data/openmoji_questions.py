"""What is asked about a picture, in six languages: templates, labels, quotation marks.

Every list of question forms comes twice: ``TRAINED`` forms appear in ``train.json``, ``HELD_OUT`` forms
only in the evaluation files. The two never overlap, so a model scored on the second cannot have
memorised the first.

Rules a new form must keep, so that any name fits in it without grammar breaking:

* the name stands in quotation marks (``{name}`` arrives quoted), never as a declined word;
* no article, participle or adjective agrees with it (Russian, Portuguese, Arabic);
* a Turkish question particle never follows the name: it follows a word of ours ("olabilir mi", "var mı"),
  whose vowels we know;
* the bare answer (a name, a label, yes or no) is a complete reply. Russian "какого цвета" would want a
  genitive, Chinese "可以…吗" would want 可以: both are avoided.
"""

from llava_mole.languages import LANGUAGES

KINDS = ("naming", "kind", "attribute", "yes_no", "choice")
LETTERS = ("A", "B", "C", "D")

TRAINED: dict[str, dict[str, tuple[str, ...]]] = {
    "naming": {
        "en": (
            "What is this?",
            "What does this picture show?",
            "What is drawn here?",
            "What is this a picture of?",
            "What do you call this?",
            "Name what you see in this picture.",
        ),
        "zh": (
            "这是什么？",
            "这幅图画的是什么？",
            "图中有什么？",
            "这张图片表示什么？",
            "图片里画了什么？",
            "请说出图中事物的名称。",
        ),
        "pt": (
            "O que é isto?",
            "O que esta imagem mostra?",
            "O que está desenhado aqui?",
            "O que se vê nesta imagem?",
            "Como se chama o que aparece aqui?",
            "Diga o nome do que aparece na imagem.",
        ),
        "ar": (
            "ما هذا؟",
            "ماذا تُظهر هذه الصورة؟",
            "ما المرسوم هنا؟",
            "ماذا يظهر في الصورة؟",
            "ما الذي تمثله هذه الصورة؟",
            "ما اسم ما يظهر في الصورة؟",
        ),
        "tr": (
            "Bu nedir?",
            "Bu resimde ne var?",
            "Burada ne çizilmiş?",
            "Resimde ne görülüyor?",
            "Bu resim neyi gösteriyor?",
            "Resimde görülen şeyin adı nedir?",
        ),
        "ru": (
            "Что это?",
            "Что изображено на картинке?",
            "Что здесь нарисовано?",
            "Что показано на этом рисунке?",
            "Что видно на картинке?",
            "Назовите то, что изображено на картинке.",
        ),
    },
    "kind": {
        "en": (
            "What kind of thing is this?",
            "Which category does this picture belong to?",
            "What type of thing is shown here?",
            "How would you classify what is shown?",
        ),
        "zh": (
            "这属于哪一类？",
            "图中的事物属于什么类别？",
            "这张图片的内容是哪一类事物？",
            "图片的内容应归入哪一类？",
        ),
        "pt": (
            "Que tipo de coisa é esta?",
            "A que categoria pertence esta imagem?",
            "Que tipo de coisa aparece aqui?",
            "Como se classifica o que aparece na imagem?",
        ),
        "ar": (
            "ما نوع هذا الشيء؟",
            "إلى أي فئة تنتمي هذه الصورة؟",
            "إلى أي نوع ينتمي ما يظهر هنا؟",
            "كيف يُصنَّف ما يظهر في الصورة؟",
        ),
        "tr": (
            "Bu ne tür bir şey?",
            "Bu resim hangi kategoriye giriyor?",
            "Burada ne tür bir şey gösteriliyor?",
            "Resimde görülen şey hangi sınıfa girer?",
        ),
        "ru": (
            "К какой категории это относится?",
            "К какому типу относится то, что изображено?",
            "К какой группе относится эта картинка?",
            "Что это за разновидность вещей?",
        ),
    },
    "attribute": {
        "en": (
            "What is the main colour of the drawing?",
            "Which colour dominates what is drawn?",
            "What colour is the thing shown, for the most part?",
            "Name the main colour of the thing in the picture.",
        ),
        "zh": (
            "图中事物主要是什么颜色？",
            "图画的主要颜色是什么？",
            "所画的事物以哪种颜色为主？",
            "图中事物的大部分是什么颜色？",
        ),
        "pt": (
            "Qual é a cor principal do desenho?",
            "Que cor predomina no desenho?",
            "Qual é a cor dominante do que aparece na imagem?",
            "Diga a cor principal do que está desenhado.",
        ),
        "ar": (
            "ما اللون الرئيسي لهذا الرسم؟",
            "أي لون يغلب على الرسم؟",
            "ما اللون السائد في الشكل المرسوم؟",
            "ما اللون الغالب على ما يظهر في الصورة؟",
        ),
        "tr": (
            "Bu çizimin ana rengi nedir?",
            "Çizimde en çok hangi renk var?",
            "Resimdeki şey ağırlıklı olarak ne renktir?",
            "Çizimde hangi renk ağır basıyor?",
        ),
        "ru": (
            "Какой основной цвет у рисунка?",
            "Какой цвет преобладает на рисунке?",
            "Какой цвет здесь главный?",
            "Назовите основной цвет того, что изображено.",
        ),
    },
    "yes_no": {
        "en": (
            "Is this {name}?",
            "Does this picture show {name}?",
            "Is {name} the right name for this?",
            "Is what is drawn here called {name}?",
        ),
        "zh": (
            "这是{name}吗？",
            "图中画的是{name}吗？",
            "{name}是图中事物的名称吗？",
            "这张图片表示的是{name}吗？",
        ),
        "pt": (
            "Isto é {name}?",
            "A imagem mostra {name}?",
            "O nome certo para isto é {name}?",
            "O que está desenhado se chama {name}?",
        ),
        "ar": (
            "هل هذا هو {name}؟",
            "هل تمثل هذه الصورة {name}؟",
            "هل {name} هو الاسم الصحيح لما في الصورة؟",
            "هل اسم ما يظهر هنا {name}؟",
        ),
        "tr": (
            "Bu resimde {name} var mı?",
            "Bunun adı {name} olabilir mi?",
            "Burada {name} görülüyor mu?",
            "Bu şeyin adı {name}, doğru mu?",
        ),
        "ru": (
            "Это {name}?",
            "Верно ли, что это {name}?",
            "Подходит ли к картинке название {name}?",
            "На картинке показано вот что: {name}?",
        ),
    },
    "choice": {
        "en": (
            "Which name fits this picture?",
            "Which of these is shown in the picture?",
            "Choose the correct name for this picture.",
            "What is shown here? Choose one of the options.",
        ),
        "zh": (
            "哪个名称符合这幅图？",
            "图中画的是下列哪一项？",
            "请为这张图选择正确的名称。",
            "这是什么？请从选项中选择。",
        ),
        "pt": (
            "Que nome corresponde a esta imagem?",
            "Qual destas opções aparece na imagem?",
            "Escolha o nome correto para esta imagem.",
            "O que é isto? Escolha uma das opções.",
        ),
        "ar": (
            "أي اسم يناسب هذه الصورة؟",
            "أي مما يلي يظهر في الصورة؟",
            "اختر الاسم الصحيح لهذه الصورة.",
            "ما هذا؟ اختر أحد الخيارات.",
        ),
        "tr": (
            "Bu resme hangi ad uyuyor?",
            "Resimde aşağıdakilerden hangisi görülüyor?",
            "Bu resim için doğru adı seçin.",
            "Bu nedir? Seçeneklerden birini seçin.",
        ),
        "ru": (
            "Какое название подходит к этой картинке?",
            "Что из перечисленного изображено на картинке?",
            "Выберите правильное название для этой картинки.",
            "Что это? Выберите один из вариантов.",
        ),
    },
}

HELD_OUT: dict[str, dict[str, tuple[str, ...]]] = {
    "naming": {
        "en": ("What can be seen in this drawing?", "Tell me what this image depicts."),
        "zh": ("请问画面中的内容是什么？", "你在这张图里看到了什么？"),
        "pt": ("O que este desenho representa?", "Identifique o que aparece na figura."),
        "ar": ("ما الذي يصوره هذا الرسم؟", "ما محتوى هذه الصورة؟"),
        "tr": ("Bu çizimde ne yer alıyor?", "Görseldeki şeyin adını söyleyin."),
        "ru": ("Что представлено на этом изображении?", "Как называется то, что здесь нарисовано?"),
    },
    "kind": {
        "en": ("What group of things does this drawing belong to?",),
        "zh": ("画面所示属于什么种类？",),
        "pt": ("A que grupo pertence o que está desenhado?",),
        "ar": ("في أي مجموعة يندرج هذا الرسم؟",),
        "tr": ("Bu çizim hangi gruba aittir?",),
        "ru": ("Как можно классифицировать этот рисунок?",),
    },
    "attribute": {
        "en": ("In which colour is most of this drawn?",),
        "zh": ("画面中事物的主色是什么？",),
        "pt": ("Qual cor mais se destaca no que está desenhado?",),
        "ar": ("ما اللون الأساسي لما هو مرسوم؟",),
        "tr": ("Görülen şeyin baskın rengi hangisidir?",),
        "ru": ("Какой цвет доминирует на этом изображении?",),
    },
    "yes_no": {
        "en": ("Would {name} be a correct label for this drawing?",),
        "zh": ("画面所示的是{name}吗？",),
        "pt": ("O nome {name} corresponde a este desenho?",),
        "ar": ("هل ينطبق الاسم {name} على هذا الرسم؟",),
        "tr": ("Bu çizime {name} adı uyar mı?",),
        "ru": ("Соответствует ли рисунку подпись {name}?",),
    },
    "choice": {
        "en": ("Which option names what is drawn?",),
        "zh": ("哪个选项说明了画面的内容？",),
        "pt": ("Qual opção nomeia o que está desenhado?",),
        "ar": ("أي خيار يصف ما هو مرسوم؟",),
        "tr": ("Hangi seçenek çizilen şeyin adıdır?",),
        "ru": ("Какой вариант называет то, что нарисовано?",),
    },
}

ANSWER_WITH_LETTER: dict[str, tuple[str, ...]] = {
    "en": ("Answer with the letter.", "Give only the letter of the right option."),
    "zh": ("请回答选项字母。", "只需写出正确选项的字母。"),
    "pt": ("Responda com a letra.", "Indique apenas a letra da opção correta."),
    "ar": ("أجب بحرف الخيار.", "اكتب حرف الخيار الصحيح فقط."),
    "tr": ("Harfle yanıtlayın.", "Yalnızca doğru seçeneğin harfini yazın."),
    "ru": ("Ответьте буквой.", "Укажите только букву правильного варианта."),
}
"""Closing line of a trained choice question. The letters are Latin in every language."""

YES_NO: dict[str, tuple[str, str]] = {
    "en": ("Yes", "No"),
    "zh": ("是", "不是"),
    "pt": ("Sim", "Não"),
    "ar": ("نعم", "لا"),
    "tr": ("Evet", "Hayır"),
    "ru": ("Да", "Нет"),
}

KIND_LABELS: dict[str, tuple[str, ...]] = {
    "face": (
        "facial expression or emotion", "表情或情绪", "expressão facial ou emoção",
        "تعبير وجه أو شعور", "yüz ifadesi veya duygu", "выражение лица или эмоция",
    ),
    "person": (
        "person or body part", "人物或身体部位", "pessoa ou parte do corpo",
        "شخص أو جزء من الجسم", "insan veya vücut bölümü", "человек или часть тела",
    ),
    "animal": ("animal", "动物", "animal", "حيوان", "hayvan", "животное"),
    "plant": ("plant", "植物", "planta", "نبات", "bitki", "растение"),
    "food": (
        "food or drink", "食物或饮料", "comida ou bebida",
        "طعام أو شراب", "yiyecek veya içecek", "еда или напиток",
    ),
    "transport": (
        "means of transport", "交通工具", "meio de transporte",
        "وسيلة نقل", "ulaşım aracı", "транспортное средство",
    ),
    "place": (
        "place or building", "地点或建筑", "lugar ou edifício",
        "مكان أو مبنى", "yer veya bina", "место или здание",
    ),
    "weather": (
        "sky or weather", "天空或天气", "céu ou clima",
        "سماء أو طقس", "gökyüzü veya hava durumu", "небо или погода",
    ),
    "activity": (
        "sport, game or celebration", "运动、游戏或庆典", "esporte, jogo ou celebração",
        "رياضة أو لعبة أو احتفال", "spor, oyun veya kutlama", "спорт, игра или праздник",
    ),
    "clothing": (
        "clothing or accessory", "服装或配饰", "roupa ou acessório",
        "ملابس أو إكسسوارات", "giysi veya aksesuar", "одежда или аксессуар",
    ),
    "object": (
        "tool or everyday object", "工具或日常用品", "ferramenta ou objeto do dia a dia",
        "أداة أو غرض يومي", "alet veya günlük eşya", "инструмент или предмет быта",
    ),
    "symbol": (
        "sign or symbol", "标志或符号", "sinal ou símbolo",
        "علامة أو رمز", "işaret veya sembol", "знак или символ",
    ),
}  # fmt: skip
"""Answers to a kind question, in the order of ``LANGUAGES``."""

COLOUR_LABELS: dict[str, tuple[str, ...]] = {
    "red": ("red", "红色", "vermelho", "أحمر", "kırmızı", "красный"),
    "orange": ("orange", "橙色", "laranja", "برتقالي", "turuncu", "оранжевый"),
    "yellow": ("yellow", "黄色", "amarelo", "أصفر", "sarı", "жёлтый"),
    "green": ("green", "绿色", "verde", "أخضر", "yeşil", "зелёный"),
    "blue": ("blue", "蓝色", "azul", "أزرق", "mavi", "синий или голубой"),
    "purple": ("purple", "紫色", "roxo", "بنفسجي", "mor", "фиолетовый"),
    "pink": ("pink", "粉色", "rosa", "وردي", "pembe", "розовый"),
    "brown": ("brown", "棕色", "marrom", "بني", "kahverengi", "коричневый"),
    "grey": ("grey", "灰色", "cinza", "رمادي", "gri", "серый"),
    "black": ("black", "黑色", "preto", "أسود", "siyah", "чёрный"),
}
"""Answers to a colour question. Russian splits what the others call blue in two words: it names both."""

QUOTES: dict[str, tuple[str, str, str, str]] = {
    "en": ("“", "”", "‘", "’"),
    "zh": ("“", "”", "‘", "’"),
    "pt": ("“", "”", "‘", "’"),
    "ar": ("«", "»", "“", "”"),
    "tr": ("“", "”", "‘", "’"),
    "ru": ("«", "»", "„", "“"),
}
"""Outer and inner quotation marks: opening, closing, opening, closing."""


def quote(name: str, language: str) -> str:
    """The name in the language's quotation marks; marks inside it become the inner ones."""
    opening, closing, inner_opening, inner_closing = QUOTES[language]
    return opening + name.replace(opening, inner_opening).replace(closing, inner_closing) + closing


def label(labels: dict[str, tuple[str, ...]], key: str, language: str) -> str:
    """The word for ``key`` (a kind or a colour) in ``language``."""
    return labels[key][LANGUAGES.index(language)]


def choice_question(stem: str, options: list[str], closing: str | None) -> str:
    """Stem, one option a line under its letter, and the line that asks for the letter (if given)."""
    lines = [stem, *(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=True))]
    return "\n".join(lines if closing is None else [*lines, closing])

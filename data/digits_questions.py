"""What is asked about handwritten digits, in six languages: templates and labels.

``TRAINED`` forms appear in ``train.json``, ``HELD_OUT`` forms only in the evaluation files; the two
never overlap. Rules a new form must keep:

* answers are words, not numerals. The same numeral would answer in all six languages, and in
  Arabic it would be two: "7" in the west of the Arab world, "٧" in the east;
* a counted noun is masculine in Arabic and Portuguese ("رقم", "algarismo", "número"), feminine in
  Russian ("цифра"): the words for one to four in ``COUNTS`` agree with it. Chinese counts with 个;
* whether a number is even or greater than another is asked about a "число" in Russian: digits as
  signs are neither.
"""

from llava_mole.languages import LANGUAGES

KINDS = ("digit", "parity", "over_five", "greater", "count")

Forms = dict[str, dict[str, tuple[str, ...]]]

TRAINED: Forms = {
    "digit": {
        "en": (
            "Which digit is written here?",
            "What digit do you see in the picture?",
            "Read the handwritten digit.",
            "Which number from zero to nine is this?",
        ),
        "zh": (
            "这里写的是哪个数字？",
            "图中的手写数字是几？",
            "请读出图中的数字。",
            "这是从零到九中的哪个数字？",
        ),
        "pt": (
            "Que algarismo está escrito aqui?",
            "Que algarismo se vê na imagem?",
            "Leia o algarismo escrito à mão.",
            "Que número de zero a nove é este?",
        ),
        "ar": (
            "ما الرقم المكتوب هنا؟",
            "أي رقم ترى في الصورة؟",
            "اقرأ الرقم المكتوب بخط اليد.",
            "أي رقم من صفر إلى تسعة هذا؟",
        ),
        "tr": (
            "Burada hangi rakam yazıyor?",
            "Resimde hangi rakam var?",
            "El yazısıyla yazılmış rakamı okuyun.",
            "Bu, sıfırdan dokuza kadar hangi rakam?",
        ),
        "ru": (
            "Какая цифра здесь написана?",
            "Какая цифра видна на картинке?",
            "Прочитайте цифру, написанную от руки.",
            "Какое это число от нуля до девяти?",
        ),
    },
    "parity": {
        "en": (
            "Is this number even or odd?",
            "Look at the handwritten number: is it odd or even?",
            "Tell me whether the number written here is even or odd.",
        ),
        "zh": (
            "这个数是偶数还是奇数？",
            "请看这个手写的数：它是奇数还是偶数？",
            "图中写的是偶数还是奇数？",
        ),
        "pt": (
            "Este número é par ou ímpar?",
            "Olhe para o número escrito à mão: é ímpar ou par?",
            "Diga se o número escrito aqui é par ou ímpar.",
        ),
        "ar": (
            "هل هذا العدد زوجي أم فردي؟",
            "انظر إلى العدد المكتوب بخط اليد: هل هو فردي أم زوجي؟",
            "العدد المكتوب هنا، أزوجي هو أم فردي؟",
        ),
        "tr": (
            "Bu sayı çift mi, tek mi?",
            "El yazısıyla yazılmış sayıya bakın: tek mi, çift mi?",
            "Burada yazan sayı çift mi yoksa tek mi?",
        ),
        "ru": (
            "Это число чётное или нечётное?",
            "Посмотрите на число, написанное от руки: оно нечётное или чётное?",
            "Скажите, какое здесь число: чётное или нечётное?",
        ),
    },
    "over_five": {
        "en": (
            "Is this number greater than five?",
            "Is the number written here more than five?",
            "Look at the number: is it larger than five?",
        ),
        "zh": ("这个数大于五，是吗？", "图中写的数是不是大于五？", "这个手写的数是不是比五大？"),
        "pt": (
            "Este número é maior que cinco?",
            "O número escrito aqui é superior a cinco?",
            "Olhe para o número: ele passa de cinco?",
        ),
        "ar": (
            "هل هذا العدد أكبر من خمسة؟",
            "هل العدد المكتوب هنا أكبر من خمسة؟",
            "انظر إلى العدد: هل يزيد على خمسة؟",
        ),
        "tr": (
            "Bu sayı beşten büyük mü?",
            "Burada yazan sayı beşten fazla mı?",
            "Sayıya bakın: beşten büyük mü?",
        ),
        "ru": (
            "Это число больше пяти?",
            "Больше ли пяти число, написанное здесь?",
            "Посмотрите на число: оно больше пяти?",
        ),
    },
    "greater": {
        "en": (
            "Which number is greater, the left one or the right one?",
            "Two numbers are written here. Is the right one or the left one greater?",
            "Compare the two numbers: which one is larger, left or right?",
        ),
        "zh": (
            "左边的数和右边的数，哪个更大？",
            "这里写着两个数：右边的大还是左边的大？",
            "请比较这两个数：哪一边的更大？",
        ),
        "pt": (
            "Qual número é maior, o da esquerda ou o da direita?",
            "Há dois números escritos aqui. Qual é o maior, o da direita ou o da esquerda?",
            "Compare os dois números: qual deles é maior?",
        ),
        "ar": (
            "أي العددين أكبر، الأيمن أم الأيسر؟",
            "هنا عددان مكتوبان: هل الأكبر هو الأيسر أم الأيمن؟",
            "قارن بين العددين: أيهما أكبر، الأيمن أم الأيسر؟",
        ),
        "tr": (
            "Hangi sayı daha büyük, soldaki mi, sağdaki mi?",
            "Burada iki sayı yazıyor. Sağdaki mi daha büyük, soldaki mi?",
            "İki sayıyı karşılaştırın: hangisi daha büyük?",
        ),
        "ru": (
            "Какое число больше: левое или правое?",
            "Здесь написаны два числа. Какое из них больше: правое или левое?",
            "Сравните два числа: какое больше?",
        ),
    },
    "count": {
        "en": (
            "How many digits are written here?",
            "How many digits are there in the picture?",
            "Count the handwritten digits.",
        ),
        "zh": ("这里写了几个数字？", "图中有几个数字？", "请数一数手写的数字有几个。"),
        "pt": (
            "Quantos algarismos estão escritos aqui?",
            "Quantos algarismos há na imagem?",
            "Conte os algarismos escritos à mão.",
        ),
        "ar": (
            "كم رقمًا مكتوبًا هنا؟",
            "كم رقمًا في الصورة؟",
            "كم عدد الأرقام المكتوبة بخط اليد؟",
        ),
        "tr": (
            "Burada kaç rakam yazıyor?",
            "Resimde kaç rakam var?",
            "El yazısıyla yazılmış rakamları sayın: kaç tane?",
        ),
        "ru": (
            "Сколько цифр здесь написано?",
            "Сколько цифр на картинке?",
            "Сосчитайте цифры, написанные от руки: сколько их?",
        ),
    },
}

HELD_OUT: Forms = {
    "digit": {
        "en": ("Name the digit on the paper.",),
        "zh": ("请问纸上写的是什么数字？",),
        "pt": ("Diga que algarismo aparece no papel.",),
        "ar": ("ما الرقم الذي يظهر على الورقة؟",),
        "tr": ("Kâğıtta görülen rakam hangisidir?",),
        "ru": ("Что за цифра написана на бумаге?",),
    },
    "parity": {
        "en": ("What is the number on the paper, odd or even?",),
        "zh": ("纸上的数是奇数，还是偶数？",),
        "pt": ("O número no papel é ímpar ou par?",),
        "ar": ("هل العدد الموجود على الورقة فردي أم زوجي؟",),
        "tr": ("Kâğıttaki sayı tek mi, çift mi?",),
        "ru": ("Какое число на бумаге: нечётное или чётное?",),
    },
    "over_five": {
        "en": ("Does the number on the paper exceed five?",),
        "zh": ("纸上的数是不是超过了五？",),
        "pt": ("O número no papel é maior do que cinco?",),
        "ar": ("هل يتجاوز العدد الموجود على الورقة خمسة؟",),
        "tr": ("Kâğıttaki sayı beşi aşıyor mu?",),
        "ru": ("Превышает ли пять число на бумаге?",),
    },
    "greater": {
        "en": ("Which of the two numbers on the paper is the greater one?",),
        "zh": ("纸上的两个数中，哪个大一些？",),
        "pt": ("Dos dois números no papel, qual é o maior?",),
        "ar": ("أي العددين على الورقة هو الأكبر؟",),
        "tr": ("Kâğıttaki iki sayıdan büyük olan hangisi?",),
        "ru": ("Какое из двух чисел на бумаге больше?",),
    },
    "count": {
        "en": ("What is the number of digits on the paper?",),
        "zh": ("纸上一共有几个数字？",),
        "pt": ("No papel, quantos algarismos aparecem?",),
        "ar": ("كم رقمًا يظهر على الورقة؟",),
        "tr": ("Kâğıtta toplam kaç rakam görülüyor?",),
        "ru": ("Сколько всего цифр видно на бумаге?",),
    },
}

DIGITS: dict[str, tuple[str, ...]] = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "zh": ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九"),
    "pt": ("zero", "um", "dois", "três", "quatro", "cinco", "seis", "sete", "oito", "nove"),
    "ar": (
        "صفر", "واحد", "اثنان", "ثلاثة", "أربعة", "خمسة", "ستة", "سبعة", "ثمانية", "تسعة",
    ),
    "tr": ("sıfır", "bir", "iki", "üç", "dört", "beş", "altı", "yedi", "sekiz", "dokuz"),
    "ru": (
        "ноль", "один", "два", "три", "четыре", "пять", "шесть", "семь", "восемь", "девять",
    ),
}  # fmt: skip

COUNTS: dict[str, tuple[str, ...]] = {
    "en": ("one", "two", "three", "four"),
    "zh": ("一个", "两个", "三个", "四个"),
    "pt": ("um", "dois", "três", "quatro"),
    "ar": ("واحد", "اثنان", "ثلاثة", "أربعة"),
    "tr": ("bir", "iki", "üç", "dört"),
    "ru": ("одна", "две", "три", "четыре"),
}
"""One to four of them."""

PARITY: dict[str, tuple[str, ...]] = {
    "even": ("even", "偶数", "par", "زوجي", "çift", "чётное"),
    "odd": ("odd", "奇数", "ímpar", "فردي", "tek", "нечётное"),
}
SIDES: dict[str, tuple[str, ...]] = {
    "left": ("the left one", "左边的", "o da esquerda", "الأيسر", "soldaki", "левое"),
    "right": ("the right one", "右边的", "o da direita", "الأيمن", "sağdaki", "правое"),
}
"""In the order of ``LANGUAGES``."""

YES_NO: dict[str, tuple[str, str]] = {
    "en": ("Yes", "No"),
    "zh": ("是", "不是"),
    "pt": ("Sim", "Não"),
    "ar": ("نعم", "لا"),
    "tr": ("Evet", "Hayır"),
    "ru": ("Да", "Нет"),
}


def answer_text(kind: str, answer: str, language: str) -> str:
    """The word for an answer: of ``answers(kind)``."""
    if kind == "digit":
        return DIGITS[language][int(answer)]
    if kind == "count":
        return COUNTS[language][int(answer) - 1]
    if kind == "over_five":
        return YES_NO[language][0 if answer == "yes" else 1]
    return (PARITY if kind == "parity" else SIDES)[answer][LANGUAGES.index(language)]


def answers(kind: str) -> tuple[str, ...]:
    """All answers that a question of a kind can have."""
    return {
        "digit": tuple(str(digit) for digit in range(10)),
        "parity": ("even", "odd"),
        "over_five": ("yes", "no"),
        "greater": ("left", "right"),
        "count": ("1", "2", "3", "4"),
    }[kind]

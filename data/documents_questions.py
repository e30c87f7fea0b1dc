"""What is asked about a document, in six languages: question forms and answers.

``TRAINED`` forms appear in ``train.json``, ``HELD_OUT`` forms only in the evaluation files. The two
never overlap. The language of a question and that of the document are independent: each picture is
asked about in all six languages.

Rules a new form must keep:

* the bare answer (a noun, a corner, a number) is a complete reply: Russian "в каком углу" would
  want a locative, Turkish "kaç satırdan" an ablative, both are avoided;
* adjectives among the answers agree with the noun of the question, which is the same in all forms:
  Portuguese "escrita" and "canto", Arabic "حروف", Russian "письменность" and "угол";
* numbers are answered in Western digits, in Arabic too: CLDR gives them for Arabic without a
  country, while the documents, of Egypt, have Arabic-Indic ones;
* "left" and "right" are those of the picture, in every language;
* no form lets the document's type, language or content be guessed.
"""

if __package__:
    from data.documents_words import SIGNS
else:
    from documents_words import SIGNS

from llava_mole.languages import LANGUAGES

KINDS = ("document_type", "script", "mark", "place", "count")
"""Asked by default."""
EXTRA_KINDS = ("number", "word")
"""Asked on request: more than the starter's tower can read with ease (README)."""

TRAINED: dict[str, dict[str, tuple[str, ...]]] = {
    "document_type": {
        "en": (
            "What kind of document is this?",
            "What type of printed item is shown here?",
            "Name the type of document in the picture.",
        ),
        "zh": ("这是什么类型的文件？", "图中是哪一种印刷品？", "请说出图中文件的类型。"),
        "pt": (
            "Que tipo de documento é este?",
            "Que tipo de impresso aparece aqui?",
            "Diga o tipo de documento que aparece na imagem.",
        ),
        "ar": (
            "ما نوع هذا المستند؟",
            "ما نوع المطبوع الذي يظهر هنا؟",
            "اذكر نوع المستند الظاهر في الصورة.",
        ),
        "tr": (
            "Bu ne tür bir belge?",
            "Burada ne tür bir basılı belge görülüyor?",
            "Resimdeki belgenin türünü söyleyin.",
        ),
        "ru": (
            "Что это за документ?",
            "Какой вид документа здесь показан?",
            "Назовите тип документа на картинке.",
        ),
    },
    "script": {
        "en": (
            "Which script is the text written in?",
            "What script does the document use?",
            "Name the script of the text in the picture.",
        ),
        "zh": (
            "文件上的文字属于哪种文字？",
            "图中使用的是哪种文字？",
            "请说出图中文字的种类。",
        ),
        "pt": (
            "Que escrita foi usada no texto?",
            "Qual é a escrita deste documento?",
            "Diga qual escrita aparece na imagem.",
        ),
        "ar": (
            "ما الحروف المستخدمة في النص؟",
            "أي حروف تظهر في هذا المستند؟",
            "اذكر الحروف التي كُتب بها النص.",
        ),
        "tr": (
            "Metinde hangi yazı kullanılmış?",
            "Bu belgedeki yazı hangisidir?",
            "Resimdeki metnin yazısını söyleyin.",
        ),
        "ru": (
            "Какая письменность использована в тексте?",
            "Какая письменность видна на документе?",
            "Назовите письменность, которая использована на картинке.",
        ),
    },
    "mark": {
        "en": (
            "What is on the document: a stamp, a signature, a barcode or a QR code?",
            "Which mark or code does the document carry?",
            "Name the mark or code on the document.",
        ),
        "zh": (
            "文件上有什么：印章、签名、条形码还是二维码？",
            "文件上带有哪种标记或代码？",
            "请说出文件上的标记或代码。",
        ),
        "pt": (
            "O que há no documento: carimbo, assinatura, código de barras ou código QR?",
            "Que marca ou código traz o documento?",
            "Diga que marca ou código aparece no documento.",
        ),
        "ar": (
            "ماذا يوجد على المستند: ختم أم توقيع أم رمز شريطي أم رمز QR؟",
            "ما العلامة أو الرمز الموجود على المستند؟",
            "اذكر العلامة أو الرمز الذي يحمله المستند.",
        ),
        "tr": (
            "Belgede ne var: mühür, imza, barkod veya karekod?",
            "Belgenin üzerinde hangi işaret veya kod bulunuyor?",
            "Belgedeki işareti veya kodu söyleyin.",
        ),
        "ru": (
            "Что есть на документе: печать, подпись, штрихкод или QR-код?",
            "Какой знак или код стоит на документе?",
            "Назовите знак или код на документе.",
        ),
    },
    "place": {
        "en": (
            "In which corner is the stamp, signature or code?",
            "Which corner of the document holds the stamp, signature or code?",
            "Where on the document is the stamp, signature or code?",
        ),
        "zh": (
            "印章、签名或代码在文件的哪个角？",
            "文件的哪个角有印章、签名或代码？",
            "请指出印章、签名或代码的位置。",
        ),
        "pt": (
            "Qual canto do documento traz o carimbo, a assinatura ou o código?",
            "Qual é o canto do carimbo, da assinatura ou do código?",
            "Diga o canto onde está o carimbo, a assinatura ou o código.",
        ),
        "ar": (
            "في أي زاوية يوجد الختم أو التوقيع أو الرمز؟",
            "أين يقع الختم أو التوقيع أو الرمز على المستند؟",
            "حدّد موضع الختم أو التوقيع أو الرمز.",
        ),
        "tr": (
            "Mühür, imza veya kodun bulunduğu köşe hangisi?",
            "Belgenin hangi köşesi mühür, imza veya kod taşıyor?",
            "Mühür, imza veya kodun köşesini söyleyin.",
        ),
        "ru": (
            "Какой угол документа занят печатью, подписью или кодом?",
            "Назовите угол, где находится печать, подпись или код.",
            "Какой угол содержит печать, подпись или код?",
        ),
    },
    "count": {
        "en": (
            "How many entries are listed, not counting heading and total?",
            "Without its heading and total, how many lines does the list have?",
            "Count the entries of the list, but not its heading and total.",
        ),
        "zh": (
            "不算标题和合计，列表共有几项？",
            "列表中有几行内容（标题和合计不计）？",
            "请数一数列表的项数，不计标题和合计。",
        ),
        "pt": (
            "Quantos itens há na lista, sem contar título e total?",
            "Sem o título e o total, quantas linhas tem a lista?",
            "Conte os itens da lista, menos o título e o total.",
        ),
        "ar": (
            "كم بنداً في القائمة دون العنوان والمجموع؟",
            "ما عدد أسطر القائمة من غير العنوان والمجموع؟",
            "عُدّ بنود القائمة ما عدا العنوان والمجموع.",
        ),
        "tr": (
            "Başlık ve toplam sayılmazsa listede kaç satır var?",
            "Listede başlık ve toplam dışında kaç madde var?",
            "Başlık ve toplam hariç listedeki maddeleri sayın.",
        ),
        "ru": (
            "Сколько пунктов в списке, не считая заголовка и итога?",
            "Сколько строк в списке без заголовка и итога?",
            "Посчитайте пункты списка, кроме заголовка и итога.",
        ),
    },
    "number": {
        "en": (
            "Which big digit stands here?",
            "What is the large number in the picture?",
            "Read the biggest number.",
        ),
        "zh": ("这里的大号数字是几？", "图中的大数字是多少？", "请读出最大的那个数字。"),
        "pt": (
            "Qual é o algarismo grande aqui?",
            "Que número grande aparece na imagem?",
            "Leia o número escrito em tamanho maior.",
        ),
        "ar": (
            "ما الرقم الكبير هنا؟",
            "ما الرقم المكتوب بخط كبير في الصورة؟",
            "اقرأ الرقم الأكبر حجماً.",
        ),
        "tr": (
            "Buradaki büyük rakam kaç?",
            "Resimdeki büyük sayı nedir?",
            "En büyük yazılmış sayıyı okuyun.",
        ),
        "ru": (
            "Какая здесь крупная цифра?",
            "Какое крупное число видно на картинке?",
            "Прочитайте самое крупное число.",
        ),
    },
    "word": {
        "en": (
            "What does the word on the sign mean?",
            "What does this sign say?",
            "Read the sign.",
        ),
        "zh": ("标牌上的词是什么意思？", "这块标牌写的是什么？", "请读出标牌的内容。"),
        "pt": (
            "O que significa a palavra na placa?",
            "O que diz esta placa?",
            "Leia a placa.",
        ),
        "ar": ("ما معنى الكلمة على اللافتة؟", "ماذا تقول هذه اللافتة؟", "اقرأ اللافتة."),
        "tr": (
            "Tabeladaki sözcüğün anlamı nedir?",
            "Bu tabelada ne yazıyor?",
            "Tabelayı okuyun.",
        ),
        "ru": (
            "Что означает слово на табличке?",
            "Что написано на этой табличке?",
            "Прочитайте табличку.",
        ),
    },
}

HELD_OUT: dict[str, dict[str, tuple[str, ...]]] = {
    "document_type": {
        "en": ("Which type of document does the picture show?",),
        "zh": ("画面中的文件属于哪种类型？",),
        "pt": ("Qual é o tipo deste documento?",),
        "ar": ("ما نوع المستند المعروض أمامك؟",),
        "tr": ("Görselde hangi belge türü yer alıyor?",),
        "ru": ("Какой документ изображён на картинке?",),
    },
    "script": {
        "en": ("What kind of script can be seen on the document?",),
        "zh": ("文件是用哪种文字书写的？",),
        "pt": ("Em qual escrita está o texto da imagem?",),
        "ar": ("ما نوع الحروف المكتوبة على المستند؟",),
        "tr": ("Belge hangi yazı ile yazılmış?",),
        "ru": ("Текст документа: какая это письменность?",),
    },
    "mark": {
        "en": ("Which mark or code can be seen on the page?",),
        "zh": ("页面上能看到哪种标记或代码？",),
        "pt": ("Qual marca ou código se vê na página?",),
        "ar": ("أي علامة أو رمز يظهر على الصفحة؟",),
        "tr": ("Sayfada görülen işaret veya kod nedir?",),
        "ru": ("Какой знак или код виден на странице?",),
    },
    "place": {
        "en": ("The stamp, signature or code: which corner of the page is it in?",),
        "zh": ("页面上的印章、签名或代码位于哪个角落？",),
        "pt": ("Em qual canto da página se vê o carimbo, a assinatura ou o código?",),
        "ar": ("ما زاوية الصفحة التي يظهر فيها الختم أو التوقيع أو الرمز؟",),
        "tr": ("Sayfada mühür, imza veya kod için hangi köşe kullanılmış?",),
        "ru": ("Печать, подпись или код: какой это угол страницы?",),
    },
    "count": {
        "en": ("What is the number of listed entries, heading and total left out?",),
        "zh": ("标题和合计除外，列出的条目有几个？",),
        "pt": ("Qual é o número de itens listados, fora título e total?",),
        "ar": ("ما عدد البنود المدرجة باستثناء العنوان والمجموع؟",),
        "tr": ("Listedeki madde sayısı, başlık ve toplam hariç, kaçtır?",),
        "ru": ("Каково число пунктов списка, если заголовок и итог не учитывать?",),
    },
    "number": {
        "en": ("Which number is printed largest?",),
        "zh": ("印得最大的数字是几？",),
        "pt": ("Qual número está impresso em tamanho maior?",),
        "ar": ("ما الرقم المطبوع بأكبر حجم؟",),
        "tr": ("En büyük basılmış sayı kaçtır?",),
        "ru": ("Какое число напечатано крупнее всего?",),
    },
    "word": {
        "en": ("What is written on the sign?",),
        "zh": ("标牌上写着什么？",),
        "pt": ("O que está escrito na placa?",),
        "ar": ("ما المكتوب على اللافتة؟",),
        "tr": ("Tabelanın üzerinde yazan nedir?",),
        "ru": ("Какое слово стоит на табличке?",),
    },
}

ANSWERS: dict[str, dict[str, tuple[str, ...]]] = {
    "document_type": {
        "receipt": ("receipt", "收据", "recibo", "إيصال", "fiş", "чек"),
        "form": ("form", "表单", "formulário", "استمارة", "form", "бланк"),
        "letter": ("letter", "信件", "carta", "رسالة", "mektup", "письмо"),
        "sign": ("sign", "标牌", "placa", "لافتة", "tabela", "табличка"),
        "ticket": ("ticket", "票", "bilhete", "تذكرة", "bilet", "билет"),
        "table": ("table", "数据表", "tabela", "جدول", "tablo", "таблица"),
        "poster": ("poster", "海报", "cartaz", "ملصق", "afiş", "афиша"),
        "calendar": ("calendar", "日历", "calendário", "تقويم", "takvim", "календарь"),
    },
    "script": {
        "latin": ("Latin", "拉丁字母", "latina", "لاتينية", "Latin yazısı", "латинская"),
        "chinese": ("Chinese", "汉字", "chinesa", "صينية", "Çin yazısı", "китайская"),
        "arabic": ("Arabic", "阿拉伯字母", "árabe", "عربية", "Arap yazısı", "арабская"),
        "cyrillic": (
            "Cyrillic", "西里尔字母", "cirílica", "سيريلية", "Kiril yazısı", "кириллическая",
        ),
    },
    "mark": {
        "stamp": ("stamp", "印章", "carimbo", "ختم", "mühür", "печать"),
        "signature": ("signature", "签名", "assinatura", "توقيع", "imza", "подпись"),
        "barcode": ("barcode", "条形码", "código de barras", "رمز شريطي", "barkod", "штрихкод"),
        "qr_code": ("QR code", "二维码", "código QR", "رمز QR", "karekod", "QR-код"),
    },
    "place": {
        "top_left": (
            "top left", "左上角", "superior esquerdo",
            "أعلى اليسار", "sol üst", "левый верхний",
        ),
        "top_right": (
            "top right", "右上角", "superior direito",
            "أعلى اليمين", "sağ üst", "правый верхний",
        ),
        "bottom_left": (
            "bottom left", "左下角", "inferior esquerdo",
            "أسفل اليسار", "sol alt", "левый нижний",
        ),
        "bottom_right": (
            "bottom right", "右下角", "inferior direito",
            "أسفل اليمين", "sağ alt", "правый нижний",
        ),
    },
    "word": SIGNS,
}  # fmt: skip
"""Kind -> answer -> its words in the order of ``LANGUAGES``; numbers are answered in digits."""


def answer_text(kind: str, answer: str | int, language: str) -> str:
    """The answer as it is said in ``language``."""
    if isinstance(answer, int):
        return str(answer)
    return ANSWERS[kind][answer][LANGUAGES.index(language)]

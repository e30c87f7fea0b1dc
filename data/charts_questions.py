"""What is asked about a chart, in six languages, and the words that stand on charts.

``TRAINED`` forms appear in ``train.json``, ``HELD_OUT`` forms only in the evaluation files. Rules a
new form must keep:

* the bare answer is a complete reply in its citation form: nominative, masculine for colours
  (Russian "какого цвета" would want a genitive: avoided); ordinals agree with the word for *bar*
  (Portuguese "a primeira" barra, Russian "первый" столбец, Arabic "الأول" عمود);
* "from the left" is said wherever it matters, in Arabic too: charts are drawn from left to right;
* a form about the course of a curve names its four answers, each form in another order;
* numbers are answered in Western digits, in Arabic too: the charts' axes have them, and Western and
  Eastern digits are both current there.
"""

from llava_mole.languages import LANGUAGES

KINDS = ("chart_type", "trend", "place", "count", "largest")
"""Asked by default."""
MORE_KINDS = ("colour", "largest_bar")
"""Asked on demand: of charts in one colour, that colour; of bars, the colour of the longest, which
the starter's tower cannot tell (see README.md)."""
ALL_KINDS = KINDS + MORE_KINDS

TRAINED: dict[str, dict[str, tuple[str, ...]]] = {
    "chart_type": {
        "en": (
            "What type of chart is this?",
            "What kind of chart is shown?",
            "Which type of chart was used here?",
        ),
        "zh": (
            "这是哪种图表？",
            "图中使用的是什么类型的图表？",
            "这张图属于哪种图表类型？",
        ),
        "pt": (
            "Que tipo de gráfico é este?",
            "Que tipo de gráfico aparece na imagem?",
            "Qual é o tipo deste gráfico?",
        ),
        "ar": (
            "ما نوع هذا الرسم البياني؟",
            "أي نوع من الرسوم البيانية يظهر هنا؟",
            "ما نوع الرسم البياني الذي في الصورة؟",
        ),
        "tr": (
            "Bu ne tür bir grafik?",
            "Resimde hangi grafik türü var?",
            "Burada hangi tür grafik kullanılmış?",
        ),
        "ru": (
            "Что это за диаграмма?",
            "Какая диаграмма изображена на картинке?",
            "Какой тип диаграммы здесь показан?",
        ),
    },
    "largest": {
        "en": (
            "Which colour marks the largest value?",
            "What colour is the largest value shown in?",
            "Which colour stands for the highest value?",
        ),
        "zh": (
            "哪种颜色代表最大的数值？",
            "最大的数值用什么颜色表示？",
            "图中数值最大的是哪种颜色？",
        ),
        "pt": (
            "Que cor representa o maior valor?",
            "De que cor é o maior valor do gráfico?",
            "Qual cor indica o valor mais alto?",
        ),
        "ar": (
            "أي لون يمثل أكبر قيمة؟",
            "ما لون أكبر قيمة في الرسم؟",
            "ما اللون الذي يشير إلى أكبر قيمة؟",
        ),
        "tr": (
            "En büyük değeri hangi renk gösteriyor?",
            "En büyük değer ne renk?",
            "Grafikteki en büyük değerin rengi nedir?",
        ),
        "ru": (
            "Какой цвет обозначает наибольшее значение?",
            "Какой цвет у наибольшего значения?",
            "Какой цвет соответствует самому большому значению?",
        ),
    },
    "colour": {
        "en": (
            "Which colour are the data drawn in?",
            "What is the colour of the data in this chart?",
            "Which colour stands for the data?",
        ),
        "zh": ("数据用什么颜色表示？", "图中数据是什么颜色？", "哪种颜色代表数据？"),
        "pt": (
            "Que cor representa os dados?",
            "Qual é a cor dos dados neste gráfico?",
            "Qual cor indica os dados?",
        ),
        "ar": (
            "أي لون يمثل البيانات؟",
            "ما لون البيانات في هذا الرسم البياني؟",
            "ما اللون الذي يشير إلى البيانات؟",
        ),
        "tr": (
            "Verileri hangi renk gösteriyor?",
            "Bu grafikte verilerin rengi nedir?",
            "Veriler ne renk?",
        ),
        "ru": (
            "Какой цвет обозначает данные?",
            "Какой цвет у данных на этой диаграмме?",
            "Какой цвет соответствует данным?",
        ),
    },
    "trend": {
        "en": (
            "Read from left to right, does the curve show a rise, a fall, a peak or a dip?",
            "Which of these does the curve show: fall, rise, dip or peak?",
            "Is the course of the curve a peak, a dip, a rise or a fall?",
        ),
        "zh": (
            "从左到右看，曲线是整体上升、整体下降、先升后降还是先降后升？",
            "曲线的走势属于哪一种：先升后降、先降后升、整体上升还是整体下降？",
            "图中的曲线怎样变化：整体下降、整体上升、先降后升还是先升后降？",
        ),
        "pt": (
            "Da esquerda para a direita, a curva mostra uma subida, uma queda, um pico ou um vale?",
            "O que a curva mostra: queda, subida, vale ou pico?",
            "Como é a curva: um pico, um vale, uma subida ou uma queda?",
        ),
        "ar": (
            "ماذا يُظهر المنحنى من اليسار إلى اليمين: صعود أم هبوط أم قمة أم قاع؟",
            "كيف يسير المنحنى من اليسار إلى اليمين: هبوط أم صعود أم قاع أم قمة؟",
            "ما شكل المنحنى من اليسار إلى اليمين: قمة أم قاع أم صعود أم هبوط؟",
        ),
        "tr": (
            "Soldan sağa bakınca eğri ne gösteriyor: yükseliş mi, düşüş mü, tepe mi, çukur mu?",
            "Eğri bunlardan hangisini gösteriyor: düşüş, yükseliş, çukur veya tepe?",
            "Eğrinin biçimi hangisi: tepe, çukur, yükseliş veya düşüş?",
        ),
        "ru": (
            "Что показывает кривая слева направо: рост, спад, пик или провал?",
            "Что видно на кривой: спад, рост, провал или пик?",
            "Какой вид имеет кривая: пик, провал, рост или спад?",
        ),
    },
    "place": {
        "en": (
            "Which bar is the tallest, counting from the left?",
            "Counting from the left, which bar is the tallest?",
            "From left to right, which bar is the highest one?",
        ),
        "zh": (
            "从左往右数，最高的条形是第几个？",
            "最高的条形是从左数第几个？",
            "从左边数起，第几个条形最高？",
        ),
        "pt": (
            "Contando da esquerda, qual barra é a mais alta?",
            "Qual é a barra mais alta, contando da esquerda?",
            "Da esquerda para a direita, qual barra é a mais alta?",
        ),
        "ar": (
            "أي عمود هو الأطول عند العد من اليسار؟",
            "عند العد من اليسار، أي عمود هو الأعلى؟",
            "ما العمود الأعلى عند العد من اليسار إلى اليمين؟",
        ),
        "tr": (
            "Soldan sayınca kaçıncı çubuk en yüksek?",
            "En yüksek çubuk soldan kaçıncı sırada?",
            "Soldan sağa bakınca kaçıncı çubuk en yüksek?",
        ),
        "ru": (
            "Какой по счёту слева столбец самый высокий?",
            "Какой столбец самый высокий, если считать слева?",
            "Если считать слева направо, какой столбец выше всех?",
        ),
    },
    "count": {
        "en": (
            "How many bars are there?",
            "How many bars does the chart have?",
            "What is the number of bars?",
        ),
        "zh": ("图中有几个条形？", "这张图一共有多少个条形？", "条形的数量是多少？"),
        "pt": (
            "Quantas barras há no gráfico?",
            "Quantas barras aparecem aqui?",
            "Qual é o número de barras?",
        ),
        "ar": (
            "كم عمودًا في الرسم؟",
            "كم عدد الأعمدة في هذا الرسم البياني؟",
            "ما عدد الأعمدة؟",
        ),
        "tr": ("Grafikte kaç çubuk var?", "Burada kaç çubuk görülüyor?", "Çubuk sayısı kaçtır?"),
        "ru": (
            "Сколько столбцов на диаграмме?",
            "Сколько здесь столбцов?",
            "Каково число столбцов?",
        ),
    },
}

HELD_OUT: dict[str, dict[str, tuple[str, ...]]] = {
    "chart_type": {
        "en": ("What do you call this type of chart?",),
        "zh": ("这种图表叫什么？",),
        "pt": ("Como se chama este tipo de gráfico?",),
        "ar": ("ماذا يُسمى هذا النوع من الرسوم البيانية؟",),
        "tr": ("Bu grafik türünün adı nedir?",),
        "ru": ("Как называется такая диаграмма?",),
    },
    "largest": {
        "en": ("Name the colour of the largest value in this chart.",),
        "zh": ("请说出图中最大数值的颜色。",),
        "pt": ("Diga qual é a cor do maior valor deste gráfico.",),
        "ar": ("ما لون القيمة الكبرى بين القيم المعروضة؟",),
        "tr": ("Hangi renk en büyük değere ait?",),
        "ru": ("Назовите цвет наибольшего значения на диаграмме.",),
    },
    "colour": {
        "en": ("Name the colour used for the data.",),
        "zh": ("请说出图中数据的颜色。",),
        "pt": ("Diga qual é a cor usada para os dados.",),
        "ar": ("ما اللون المستخدم للبيانات؟",),
        "tr": ("Veriler için kullanılan renk hangisi?",),
        "ru": ("Назовите цвет данных на диаграмме.",),
    },
    "trend": {
        "en": ("What do you see in the curve: a dip, a peak, a fall or a rise?",),
        "zh": ("请判断曲线的变化：先降后升、先升后降、整体下降还是整体上升？",),
        "pt": ("O que se vê na curva: um vale, um pico, uma queda ou uma subida?",),
        "ar": ("أي وصف يناسب المنحنى من اليسار إلى اليمين: قاع أم قمة أم هبوط أم صعود؟",),
        "tr": ("Eğride ne görüyorsunuz: çukur mu, tepe mi, düşüş mü, yükseliş mi?",),
        "ru": ("Определите ход кривой: провал, пик, спад или рост.",),
    },
    "place": {
        "en": ("Counted from the left, which of the bars reaches highest?",),
        "zh": ("从左到右，最高的条形排在第几个？",),
        "pt": ("Contando a partir da esquerda, qual das barras chega mais alto?",),
        "ar": ("أي الأعمدة هو الأكثر ارتفاعًا بدءًا من اليسار؟",),
        "tr": ("En uzun çubuk soldan kaçıncıdır?",),
        "ru": ("Который столбец слева самый высокий?",),
    },
    "count": {
        "en": ("Count the bars in this chart.",),
        "zh": ("请数一数图中有几个条形。",),
        "pt": ("Conte as barras deste gráfico.",),
        "ar": ("احسب عدد الأعمدة في الرسم.",),
        "tr": ("Grafikteki çubukları sayın.",),
        "ru": ("Посчитайте столбцы на диаграмме.",),
    },
}

for _forms in (TRAINED, HELD_OUT):
    _forms["largest_bar"] = _forms["largest"]

LABELS: dict[str, dict[str, tuple[str, ...]]] = {
    "chart_type": {
        "bar": (
            "bar chart", "条形图", "gráfico de barras", "مخطط أعمدة", "çubuk grafiği",
            "столбчатая диаграмма",
        ),
        "line": (
            "line chart", "折线图", "gráfico de linhas", "مخطط خطي", "çizgi grafiği",
            "линейная диаграмма",
        ),
        "area": (
            "area chart", "面积图", "gráfico de áreas", "مخطط مساحي", "alan grafiği",
            "диаграмма с областями",
        ),
        "pie": (
            "pie chart", "饼图", "gráfico de pizza", "مخطط دائري", "pasta grafiği",
            "круговая диаграмма",
        ),
        "scatter": (
            "scatter plot", "散点图", "gráfico de dispersão", "مخطط انتشار", "dağılım grafiği",
            "точечная диаграмма",
        ),
        "heatmap": (
            "heat map", "热力图", "mapa de calor", "خريطة حرارية", "ısı haritası",
            "тепловая карта",
        ),
    },
    "colour": {
        "red": ("red", "红色", "vermelho", "أحمر", "kırmızı", "красный"),
        "orange": ("orange", "橙色", "laranja", "برتقالي", "turuncu", "оранжевый"),
        "yellow": ("yellow", "黄色", "amarelo", "أصفر", "sarı", "жёлтый"),
        "green": ("green", "绿色", "verde", "أخضر", "yeşil", "зелёный"),
        "blue": ("blue", "蓝色", "azul", "أزرق", "mavi", "синий"),
        "purple": ("purple", "紫色", "roxo", "بنفسجي", "mor", "фиолетовый"),
        "brown": ("brown", "棕色", "marrom", "بني", "kahverengi", "коричневый"),
    },
    "trend": {
        "rise": ("rise", "整体上升", "subida", "صعود", "yükseliş", "рост"),
        "fall": ("fall", "整体下降", "queda", "هبوط", "düşüş", "спад"),
        "peak": ("peak", "先升后降", "pico", "قمة", "tepe", "пик"),
        "dip": ("dip", "先降后升", "vale", "قاع", "çukur", "провал"),
    },
    "place": {
        "1": ("first", "第一个", "a primeira", "الأول", "birinci", "первый"),
        "2": ("second", "第二个", "a segunda", "الثاني", "ikinci", "второй"),
        "3": ("third", "第三个", "a terceira", "الثالث", "üçüncü", "третий"),
        "4": ("fourth", "第四个", "a quarta", "الرابع", "dördüncü", "четвёртый"),
        "5": ("fifth", "第五个", "a quinta", "الخامس", "beşinci", "пятый"),
        "6": ("sixth", "第六个", "a sexta", "السادس", "altıncı", "шестой"),
    },
    "count": {str(number): (str(number),) * len(LANGUAGES) for number in range(2, 7)},
}  # fmt: skip
"""Answers in the order of ``LANGUAGES``; "largest" and "largest_bar" are colours too. The blue
of the charts is a deep one, синий, never голубой."""

TITLES: dict[str, tuple[str, ...]] = {
    "firm_value": (
        "Value of firms", "公司价值", "Valor das empresas", "قيمة الشركات", "Şirket değeri",
        "Стоимость компаний",
    ),
    "temperature": (
        "Temperature", "气温", "Temperatura", "درجة الحرارة", "Sıcaklık", "Температура",
    ),
    "precipitation": ("Precipitation", "降水量", "Precipitação", "هطول الأمطار", "Yağış", "Осадки"),
    "wind_speed": (
        "Wind speed", "风速", "Velocidade do vento", "سرعة الرياح", "Rüzgâr hızı",
        "Скорость ветра",
    ),
    "days": (
        "Number of days", "天数", "Número de dias", "عدد الأيام", "Gün sayısı", "Число дней",
    ),
    "employment": (
        "Employment", "就业人数", "Emprego", "عدد العاملين", "İstihdam", "Занятость",
    ),
    "barley": (
        "Barley yield", "大麦产量", "Safra de cevada", "محصول الشعير", "Arpa verimi",
        "Урожай ячменя",
    ),
    "horsepower": (
        "Engine power", "发动机功率", "Potência do motor", "قدرة المحرك", "Motor gücü",
        "Мощность двигателя",
    ),
    "weight": (
        "Weight of cars", "汽车重量", "Peso dos carros", "وزن السيارات", "Araç ağırlığı",
        "Масса автомобилей",
    ),
    "cars": ("Cars", "汽车", "Automóveis", "السيارات", "Otomobiller", "Автомобили"),
    "share_price": (
        "Share price", "股价", "Preço da ação", "سعر السهم", "Hisse fiyatı", "Цена акции",
    ),
    "wheat_price": (
        "Price of wheat", "小麦价格", "Preço do trigo", "سعر القمح", "Buğday fiyatı",
        "Цена пшеницы",
    ),
    "wages": (
        "Weekly wage", "周薪", "Salário semanal", "الأجر الأسبوعي", "Haftalık ücret",
        "Недельный заработок",
    ),
    "distance_driven": (
        "Distance driven", "行驶里程", "Distância percorrida", "المسافة المقطوعة",
        "Kat edilen mesafe", "Пройденный путь",
    ),
    "petrol_price": (
        "Petrol price", "汽油价格", "Preço da gasolina", "سعر البنزين", "Benzin fiyatı",
        "Цена бензина",
    ),
    "irises": ("Irises", "鸢尾花", "Íris", "زهور السوسن", "Süsen çiçekleri", "Ирисы"),
    "births": (
        "Births per woman", "平均生育数", "Filhos por mulher", "عدد المواليد لكل امرأة",
        "Kadın başına doğum", "Детей на одну женщину",
    ),
    "gdp": (
        "Economic output", "国内生产总值", "Produto interno bruto", "الناتج المحلي الإجمالي",
        "Gayrisafi yurt içi hasıla", "Валовой внутренний продукт",
    ),
    "investment": ("Investment", "投资额", "Investimento", "الاستثمار", "Yatırım", "Инвестиции"),
    "price_index": (
        "Price index", "物价指数", "Índice de preços", "مؤشر الأسعار", "Fiyat endeksi",
        "Индекс цен",
    ),
    "interest": (
        "Interest rate", "利率", "Taxa de juros", "سعر الفائدة", "Faiz oranı",
        "Процентная ставка",
    ),
    "unemployment": (
        "Unemployment", "失业情况", "Desemprego", "البطالة", "İşsizlik", "Безработица",
    ),
    "inflation": ("Inflation", "通货膨胀率", "Inflação", "التضخم", "Enflasyon", "Инфляция"),
    "sunspots": (
        "Sunspots", "太阳黑子数", "Manchas solares", "البقع الشمسية", "Güneş lekeleri",
        "Солнечные пятна",
    ),
    "population": ("Population", "人口", "População", "عدد السكان", "Nüfus", "Население"),
    "electricity": (
        "Electricity", "发电量", "Eletricidade", "توليد الكهرباء", "Elektrik üretimi",
        "Электроэнергия",
    ),
    "sea_temperature": (
        "Sea temperature", "海水温度", "Temperatura do mar", "حرارة البحر", "Deniz sıcaklığı",
        "Температура моря",
    ),
    "wind_frequency": (
        "Wind direction", "风向频率", "Direção do vento", "اتجاه الرياح", "Rüzgâr yönü",
        "Направление ветра",
    ),
    "food_spending": (
        "Spending on food", "食品支出", "Gastos com comida", "الإنفاق على الطعام",
        "Gıda harcaması", "Расходы на еду",
    ),
    "life_expectancy": (
        "Life expectancy", "预期寿命", "Expectativa de vida", "متوسط العمر المتوقع",
        "Beklenen yaşam süresi", "Продолжительность жизни",
    ),
    "income": (
        "Income per person", "人均收入", "Renda por pessoa", "دخل الفرد", "Kişi başına gelir",
        "Доход на человека",
    ),
    "deaths": ("Deaths", "死亡人数", "Mortes", "الوفيات", "Ölümler", "Число смертей"),
    "river_flow": (
        "Flow of the Nile", "尼罗河流量", "Vazão do Nilo", "تدفق نهر النيل", "Nil'in debisi",
        "Сток Нила",
    ),
    "equipment": (
        "Electrical equipment", "电气设备", "Equipamento elétrico", "المعدات الكهربائية",
        "Elektrikli ekipman", "Электрооборудование",
    ),
    "carbon_dioxide": (
        "Carbon dioxide", "二氧化碳浓度", "Dióxido de carbono", "ثاني أكسيد الكربون",
        "Karbondioksit", "Углекислый газ",
    ),
    "poverty": (
        "Poverty rate", "贫困率", "Taxa de pobreza", "معدل الفقر", "Yoksulluk oranı",
        "Уровень бедности",
    ),
    "urban": (
        "Urban population", "城镇人口", "População urbana", "سكان الحضر", "Kentsel nüfus",
        "Городское население",
    ),
    "tips": ("Tips", "小费", "Gorjetas", "الإكراميات", "Bahşişler", "Чаевые"),
}  # fmt: skip
"""What a chart shows, for its title."""


def answer_text(kind: str, answer: str, language: str) -> str:
    """The answer to a question of this kind, as a reader of ``language`` would put it."""
    labels = LABELS["colour" if kind in ("largest", "largest_bar") else kind]
    return labels[answer][LANGUAGES.index(language)]


def title(key: str, language: str) -> str:
    return TITLES[key][LANGUAGES.index(language)]

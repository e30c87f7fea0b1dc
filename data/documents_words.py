"""Words of our own on the documents, each in the order of ``LANGUAGES``.

Headings and sentences differ by split; labels of fields and the words on signs are the same in all
(a word never trained could not be read).
"""

HEADINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "receipt": {
        "train": ("Receipt", "收据", "Recibo", "إيصال", "Fiş", "Чек"),
        "dev": ("Sales slip", "购物小票", "Cupom", "قسيمة شراء", "Satış fişi", "Товарный чек"),
        "test": ("Bill", "账单", "Conta", "فاتورة", "Hesap", "Счёт"),
    },
    "form": {
        "train": ("Application", "申请表", "Formulário", "استمارة", "Başvuru formu", "Заявление"),
        "dev": ("Registration", "登记表", "Inscrição", "تسجيل", "Kayıt formu", "Регистрация"),
        "test": ("Survey", "调查表", "Questionário", "استبيان", "Anket", "Анкета"),
    },
    "letter": {
        "train": (
            "City library", "市图书馆", "Biblioteca municipal",
            "مكتبة المدينة", "Şehir kütüphanesi", "Городская библиотека",
        ),
        "dev": (
            "Health centre", "健康中心", "Centro de saúde",
            "مركز صحي", "Sağlık merkezi", "Медицинский центр",
        ),
        "test": (
            "Music school", "音乐学校", "Escola de música",
            "مدرسة الموسيقى", "Müzik okulu", "Музыкальная школа",
        ),
    },
    "number_sign": {
        "train": ("Platform", "站台", "Plataforma", "رصيف", "Peron", "Платформа"),
        "dev": ("Gate", "登机口", "Portão", "بوابة", "Kapı", "Выход"),
        "test": ("Counter", "窗口", "Guichê", "شباك", "Gişe", "Окно"),
    },
    "ticket": {
        "train": (
            "Air ticket", "机票", "Passagem aérea", "تذكرة طيران", "Uçak bileti", "Авиабилет",
        ),
        "dev": (
            "Coach ticket", "汽车票", "Bilhete de ônibus",
            "تذكرة حافلة", "Otobüs bileti", "Билет на автобус",
        ),
        "test": (
            "Boarding pass", "登机牌", "Cartão de embarque",
            "بطاقة صعود", "Biniş kartı", "Посадочный талон",
        ),
    },
    "table": {
        "train": ("Departures", "出发航班", "Partidas", "المغادرة", "Kalkış", "Вылет"),
        "dev": ("Order", "订货单", "Pedido", "طلبية", "Sipariş listesi", "Заказ"),
        "test": ("Stock", "库存表", "Estoque", "المخزون", "Stok listesi", "Склад"),
    },
    "poster": {
        "train": (
            "Summer festival", "夏日节", "Festival de verão",
            "مهرجان الصيف", "Yaz festivali", "Летний фестиваль",
        ),
        "dev": (
            "Book fair", "书展", "Feira do livro",
            "معرض الكتاب", "Kitap fuarı", "Книжная ярмарка",
        ),
        "test": (
            "Open-air cinema", "露天电影", "Cinema ao ar livre",
            "سينما صيفية", "Yazlık sinema", "Летний кинотеатр",
        ),
    },
}  # fmt: skip
"""Calendars are headed by their month; signs with a word or a list have no heading."""

LABELS: dict[str, tuple[str, ...]] = {
    "total": ("Total", "合计", "Total", "المجموع", "Toplam", "Итого"),
    "thanks": ("Thank you!", "谢谢！", "Obrigado!", "شكراً لكم!", "Teşekkürler!", "Спасибо!"),
    "date": ("Date", "日期", "Data", "التاريخ", "Tarih", "Дата"),
    "name": ("Name", "姓名", "Nome", "الاسم", "Ad", "Имя"),
    "address": ("Address", "地址", "Endereço", "العنوان", "Adres", "Адрес"),
    "phone": ("Phone", "电话", "Telefone", "الهاتف", "Telefon", "Телефон"),
    "city": ("City", "城市", "Cidade", "المدينة", "Şehir", "Город"),
    "country": ("Country", "国家", "País", "الدولة", "Ülke", "Страна"),
    "age": ("Age", "年龄", "Idade", "العمر", "Yaş", "Возраст"),
    "time": ("Time", "时间", "Hora", "الوقت", "Saat", "Время"),
    "price": ("Price", "价格", "Preço", "السعر", "Fiyat", "Цена"),
    "quantity": ("Qty", "数量", "Qtd.", "الكمية", "Adet", "Кол-во"),
    "goods": ("Item", "商品", "Item", "الصنف", "Ürün", "Товар"),
    "from": ("From", "出发", "De", "من", "Nereden", "Откуда"),
    "to": ("To", "到达", "Para", "إلى", "Nereye", "Куда"),
    "gate": ("Gate", "登机口", "Portão", "بوابة", "Kapı", "Выход"),
    "km": ("km", "公里", "km", "كم", "km", "км"),
}
FIELDS = ("name", "address", "phone", "date", "city", "country", "age")
"""Labels of a form's fields."""

GREETINGS = ("Dear reader,", "尊敬的读者：", "Prezado leitor,", "القارئ الكريم،", "Sayın okur,",
             "Уважаемый читатель!")  # fmt: skip

SENTENCES: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": (
        (
            "We are open from Monday to Friday and look forward to your visit.",
            "我们周一至周五开放，期待您的光临。",
            "Estamos abertos de segunda a sexta e esperamos a sua visita.",
            "نستقبلكم من الاثنين إلى الجمعة ونتطلع إلى زيارتكم.",
            "Pazartesiden cumaya kadar açığız, ziyaretinizi bekliyoruz.",
            "Мы работаем с понедельника по пятницу и ждём вас в гости.",
        ),
        (
            "Please bring this letter and your card with you.",
            "请携带此信和您的证件。",
            "Traga esta carta e o seu cartão, por favor.",
            "يرجى إحضار هذه الرسالة وبطاقتكم معكم.",
            "Lütfen bu mektubu ve kartınızı yanınızda getirin.",
            "Пожалуйста, возьмите с собой это письмо и вашу карту.",
        ),
        (
            "The building has been repaired and all rooms can be used again.",
            "大楼已经修缮完毕，所有房间均可重新使用。",
            "O prédio foi reformado e todas as salas já podem ser usadas.",
            "تم ترميم المبنى ويمكن استخدام جميع القاعات من جديد.",
            "Bina onarıldı, bütün odalar yeniden kullanılabilir.",
            "Здание отремонтировано, и все залы снова открыты.",
        ),
    ),
    "dev": (
        (
            "Your appointment has been moved to the following week.",
            "您的预约已改到下周。",
            "A sua consulta foi transferida para a semana seguinte.",
            "تم تأجيل موعدكم إلى الأسبوع التالي.",
            "Randevunuz bir sonraki haftaya alındı.",
            "Ваш приём перенесён на следующую неделю.",
        ),
        (
            "Call us if you have any questions about the new hours.",
            "如对新的时间有疑问，请致电我们。",
            "Ligue para nós se tiver dúvidas sobre o novo horário.",
            "اتصلوا بنا إذا كانت لديكم أسئلة عن المواعيد الجديدة.",
            "Yeni saatler hakkında sorunuz olursa bizi arayın.",
            "Позвоните нам, если у вас есть вопросы о новом расписании.",
        ),
    ),
    "test": (
        (
            "The concert of our pupils begins at six in the great hall.",
            "我校学生音乐会六点在大礼堂开始。",
            "O concerto dos nossos alunos começa às seis no salão principal.",
            "يبدأ حفل تلاميذنا في السادسة في القاعة الكبرى.",
            "Öğrencilerimizin konseri saat altıda büyük salonda başlıyor.",
            "Концерт наших учеников начнётся в шесть часов в большом зале.",
        ),
        (
            "Entry is free, and families are very welcome.",
            "免费入场，欢迎全家参加。",
            "A entrada é gratuita e as famílias são bem-vindas.",
            "الدخول مجاني، ونرحب بالعائلات.",
            "Giriş ücretsizdir, aileler de davetlidir.",
            "Вход бесплатный, приглашаем всей семьёй.",
        ),
    ),
}  # fmt: skip

SIGNS: dict[str, tuple[str, ...]] = {
    "exit": ("Exit", "出口", "Saída", "خروج", "Çıkış", "Выход"),
    "entrance": ("Entrance", "入口", "Entrada", "دخول", "Giriş", "Вход"),
    "open": ("Open", "营业中", "Aberto", "مفتوح", "Açık", "Открыто"),
    "closed": ("Closed", "休息中", "Fechado", "مغلق", "Kapalı", "Закрыто"),
    "stop": ("Stop", "停", "Pare", "قف", "Dur", "Стоп"),
    "danger": ("Danger", "危险", "Perigo", "خطر", "Tehlike", "Опасно"),
    "hotel": ("Hotel", "酒店", "Hotel", "فندق", "Otel", "Гостиница"),
    "pharmacy": ("Pharmacy", "药店", "Farmácia", "صيدلية", "Eczane", "Аптека"),
    "school": ("School", "学校", "Escola", "مدرسة", "Okul", "Школа"),
    "hospital": ("Hospital", "医院", "Hospital", "مستشفى", "Hastane", "Больница"),
    "museum": ("Museum", "博物馆", "Museu", "متحف", "Müze", "Музей"),
    "cinema": ("Cinema", "电影院", "Cinema", "سينما", "Sinema", "Кино"),
}
"""The big words on signs."""

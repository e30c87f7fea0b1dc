"""Turkish. What denies or asserts mostly follows the letter: `A değil`, `B şıkkı doğru`."""

from llava_mole.evaluation.extraction.words import Words

TURKISH = Words(
    answer=(
        "mantikli|daha yakin|agir basiyor|daha makul|makul|oyum|oyumu|kullaniyorum|cevap*|"
        "cevab*|yanit*|dogru*|sec|seciyorum|sectim|seciyoruz|secerim|secerdim|secmek|"
        "secilmeli*|secilir|secimim|tercih*|isaretl*|gecerli*|kaliyor|kalir|kaldi|kalan|"
        "olmali|olmalidir|uygun|uyuyor|en iyi|karar verdim|kararim|daha olasi|aslinda|"
        "diyorum|derim|derdim|sonuc|✅|uymaktadir|eslesiyor|tutuyor"
    ),
    option="sik*|secene*|harf*|madde*|numarali*|cevap|yanit|secim*",
    before=(
        "sonunda|ozetle|kisaca|genelde|dusununce|toparlarsak|acikcasi|artik|cevabimsa|oyum|"
        "oyumu|ve|veya|ya|yada|ya da|ne|de|da|ile|ama|fakat|ancak|bence|sanirim|galiba|belki|"
        "muhtemelen|ihtimalle|kesinlikle|kesin|tabii|elbette|yani|oyleyse|halde|dolayisiyla|"
        "nedenle|yuzden|cevap|cevabim|cevabi|yanit|yanitim|dogru|dogrusu|secim|secimim|"
        "geriye|olan|hayir|yok|evet|aslinda|hem|en|sadece|yalnizca|sonuc|sonucta|olarak|"
        "cunku|acikca|buyuk|tercihim|degil|once|ilk|basta|eger|yine|ki|iyi|secenek|sik|gore|"
        "aslen|oyle|kararim|benim|tahminim|tahminimce|tahmin|yerine|bu|burada|olasilikla|"
        "herhalde"
    ),
    after=(
        "kazaniyor|makul|daha|agir|mantikli|ve|veya|ya|ile|ama|degil*|dogru*|yanlis*|sik*|"
        "secene*|olmali*|olabilir*|olurdu|olur|olacak|mi|mu|cunku|de|da|uygun*|uymuyor*|"
        "uyuyor|olamaz*|gibi|sandim|diyorum|derim|kaliyor|kalir|kaldi|secilmeli*|harfi*|"
        "cevap*|yanit*|eleniyor|elenir|elendi|hatali*|en|numarali*|olarak|seciyorum|secerdim|"
        "olduguna|oldugunu|oldugu|yerine|demek|diye|der|dir|ise|zaten|icin|maddesi*|yi|nin|"
        "olsa|kesinlikle|bence|ancak|fakat|haric|disinda|tutuyor|gecerli*|secimim"
    ),
    negation="ne|ne de|hicbir|haric|❌",
    rejection=(
        "daha az|en az|*miyor*|*muyor*|*maz|*mez|*mazdi|*medi|*madi|*mamis*|*memis*|ziyade|"
        "eliyor*|degil*|yanlis*|hatali*|olamaz*|uymuyor*|elen*|eleyebil*|eledi*|ele|"
        "alakasiz*|imkansiz*|gecersiz*|yok|haric|disinda|yerine|cikarilabil*|olmaz|olmadi*|"
        "tutmuyor|mumkun degil|celis*|uygun degil|sayilmaz|uymaz|yansitmiyor|desteklemiyor|"
        "gostermiyor|❌|zayif|kotu|geride"
    ),
    but="ama|fakat|ancak|oysa|halbuki|lakin|aksine|bilakis",
    because="cunku|zira|oldugundan|oldugu icin|nedeni|sebebi|aciklama|gerekce|icin|nedeniyle",
    also=(
        "mi|mu|ve|veya|ya da|yada|ile|ve belki|ve de|ne de|de|da|hem|hem de|ya|veyahut|yahut|"
        "ve/veya"
    ),
    therefore=(
        "genel olarak|her seyi dusununce|butun olarak|eleme yoluyla|sonunda|toparlarsak|"
        "bu nedenle|dolayisiyla|bu yuzden|o halde|oyleyse|sonuc olarak|sonucta|sonuc|"
        "demek ki|bu durumda|yani|nihai|son|bundan dolayi|bu sebeple|kisacasi|ozetle|boylece|"
        "geriye|haliyle|son olarak|netice"
    ),
    correction=(
        "yok hayir|hayir hayir|dur|durun|pardon|daha dogrusu|duzeltme|duzeltiyorum|"
        "bir dakika|yok|ozur dilerim|yanlis oldu|hayir, |yanildim"
    ),
    aside=(
        "once|ilk bakista|basta|sandim|sanmistim|dusunmustum|her ne kadar|ragmen|cazip|"
        "gibi gorunse|gibi durs*|gorunse de|olsa da|aksine|farkli olarak|ilk basta|"
        "baslangicta|demistim|dedim|soylemistim|yazmistim|secmistim|isaretlemistim|cogu kisi|"
        "onceki soru*|tuzak|celdirici"
    ),
    condition="eger|olsaydi|varsa|yoksa|bagli|durumunda|takdirde",
    discussion=(
        "diyor|der|anlatiyor|soyluyor|belirtiyor|gosteriyor|ifade ediyor|bahsediyor|"
        "tanimliyor|anlatan|anlatilan|gerektirir|gerektiriyor|gerektirirdi"
    ),
    refusal=(
        "goremiyorum|goruntuleyemiyorum|gorme yetenegim yok|secemiyorum|seçemem|"
        "belirleyemiyorum|belirleyemem|cevaplayamiyorum|cevap veremiyorum|cevap veremem|"
        "yanitlayamiyorum|yanit veremem|yanitlayamam|yardimci olamiyorum|yardimci olamam|"
        "bilmiyorum|bilemiyorum|emin degilim, karar|karar veremedim|karar veremiyorum|"
        "kararsizim|soylemek zor|demek zor|mumkun degil|imkansiz|yukleyin|yukler misin*|"
        "yukleyebilir|gonderin|gonderir misin*|paylasin|paylasir misin*|ekleyin|gorsel yok|"
        "resim yok|goruntu yok|gorsel gelmedi|yuklenmedi|yuklenmemis|eklenmemis|saglanmadi|"
        "saglanmamis|net degil|anlasilmiyor|anlayamiyorum|soyleyemem|soyleyemiyorum|"
        "yapay zeka|yeterli bilgi|hem evet hem hayir|evet ve hayir|her ikisi de olabilir|"
        "belli degil|tespit edemiyorum|incelemem mumkun|erisimim yok|yorum yapamam|"
        "yorum yapamiyorum|tahmin edemem|tahmin edemiyorum|bulamadim|secmek istemiyorum|"
        "secmek istemem|istemiyorum|istemem|karar vermem|secmeyecegim|tercih etmiyorum|"
        "taraf tutmak"
    ),
    perhaps="olabilir|belki|mumkun",
    likewise="ayni sekilde|keza|tipki",
    instead="aksine",
    total="toplam|toplamda|toplami|toplamlari|hepsi birden|eder",
    extreme=(
        "en kucuk*|en buyuk*|en yuksek*|en dusuk*|en az*|en cok*|en uzun*|en kisa*|en hizli*|"
        "en yavas*|en agir*|en hafif*|en pahali*|en ucuz*|en genc*|en yasli*|en fazla*|"
        "en yakin*|en uzak*"
    ),
    shown=(
        "gosterilen|vurgulanan|isaretlenen|isaretli|renklendirilen|boyanan|boyali|taranan|"
        "belirtilen|daire icine alinan"
    ),
    that_is="yani|baska bir deyisle|demek ki",
    any="hic|hicbir|herhangi|kimse|kimseyi",
    picture="gorsel|gorseli|resim|resmi|fotograf*|goruntu|goruntuyu|dosya|secenek",
    statement="ifade|ifadesi|cumle|onerme|iddia|aciklama|soz|bu bilgi|yargi",
    is_true="dogru|dogrudur|gecerli|gecerlidir",
    is_false="yanlis|yanlistir|dogru degil|dogru degildir|hatali|hatalidir|gecersiz",
    harmless=(
        "emin degilim ama|hic suphesiz|suphesiz|kuskusuz|suphe yok|kusku yok|hic kuskusuz|"
        "degil mi|sadece degil|emin degilim|baska secenek kalmiyor|baska secenek kalmadi|"
        "baska sik kalmiyor|baska sik kalmadi|baskasi kalmiyor|baskasi kalmadi|"
        "baska bir secenek kalmiyor|baska bir secenek kalmadi|baska bir sik kalmadi"
    ),
    none=(
        "hicbiri|yukaridakilerin hicbiri|hic biri|hicbir secenek|hicbir sik|"
        "seceneklerin hicbiri|hicbirisi"
    ),
    every=(
        "hepsi|yukaridakilerin hepsi|tumu|yukaridakilerin tumu|her ikisi|ikisi de|"
        "her ikisi de|seceneklerin hepsi|butun secenekler|tum secenekler|hepsi dogru"
    ),
    yes="evet|dogru|var|aynen",
    no="hayir|yanlis|yok",
    article="bir|bu|su",
    ordinals=(
        "birinci/ilk/ilki/birincisi/birincisini/1.|ikinci/ikincisi/ikincisini/2.|ucuncu/"
        "ucuncusu/ucuncusunu/3.|dorduncu/dorduncusu/dorduncusunu/4.|besinci/besincisi/"
        "besincisini/5.|altinci/altincisi/6.|yedinci/yedincisi/7.|sekizinci/sekizincisi/8.|"
        "dokuzuncu/dokuzuncusu/9.|sonuncu/son/sonuncusu/sonuncusunu"
    ),
    numbers=(
        "sifir|bir|iki|uc|dort|bes|alti|yedi|sekiz|dokuz|on|on bir/onbir|on iki/oniki|on uc/"
        "onuc|on dort/ondort|on bes/onbes|on alti/onalti|on yedi/onyedi|on sekiz/onsekiz|"
        "on dokuz/ondokuz|yirmi"
    ),
    tens=("otuz|kirk|elli|altmis|yetmis|seksen|doksan||||||||||"),
)

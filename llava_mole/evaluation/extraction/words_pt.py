"""Portuguese, of Brazil and of Portugal."""

from llava_mole.evaluation.extraction.words import Words

PORTUGUESE = Words(
    answer=(
        "mais razoavel|faz mais sentido|mais sentido|mais coerente|mais convincente|"
        "mais plausivel|mais logica|voto|resposta*|correta|correto|corretamente|certa|certo|"
        "gabarito|escolh*|fico com|ficaria com|fica com|opto por|optaria por|seleciono|"
        "selecionaria|marco|marcaria|assinalo|assinalaria|voto em|verdadeira|verdadeiro|"
        "melhor|resta|restou|restando|sobra|sobrou|deve ser|tem que ser|so pode ser|"
        "corresponde|adequada|solucao|aposto|vou de|vou com|iria de|conclusao|conclui-se|"
        "e a opcao certa|acertada|combina|condiz|marqu*|assinal*|selecion*|mais provavel|"
        "na verdade|diria|chuto|palpite"
    ),
    option=(
        "opcao|opcoes|alternativa|alternativas|letra|letras|alinea|item|resposta|escolha|"
        "assertiva|op"
    ),
    before=(
        "geral|contas|eliminacao|conclusao|final|resumo|porem|contudo|voto|verdade|melhor|e|"
        "ou|nem|mas|a|à|as|na|da|em|com|por|sim|seja|seria|esta|nao|são|sao|era|entre|so|"
        "apenas|provavelmente|talvez|certamente|definitivamente|claramente|obviamente|"
        "possivelmente|logo|portanto|entao|assim|escolho|escolheria|seleciono|marco|resposta|"
        "correta|certa|ser|foi|excluindo|elimino|descarto|descarta-se|exceto|embora|tanto|"
        "quanto|como|vez de|q|que|se|sobra|resta|pela|diria|opto|espera|alias|digo|acho|"
        "creio|acredito|penso|porque|pois|restando|pra|para|fica|vou"
    ),
    after=(
        "mais|bate|condiz|tem|continua|vence|e|é|esta|estao|sao|ou|nem|mas|pois|porque|ja|"
        "nao|mostra|diz|parece|seria|em|foi|era|como|que|descreve|representa|apresenta|"
        "corresponde|tambem|sugere|por|visto|uma|dado|devido|pode|deve|fica|combina|afirma|"
        "menciona|indica|se|com|no|na|so|seja|quanto|sem|restou|embora|porem|mesmo|me|para|"
        "faz|contradiz|descarta|meu|minha"
    ),
    negation=(
        "do que|nao|nem|em vez d*|ao inves d*|exceto|excluindo|exclu*|elimin*|descart*|sem|"
        "nunca|jamais|incorreta|errada|errado|falsa|falso|menos a|nenhum|nenhuma|tampouco|"
        "dificilmente|tudo menos|quase disse|longe de"
    ),
    rejection=(
        "menos provavel|menos adequada|menos coerente|menos convincente|menos plausivel|nao|"
        "errada*|errado*|incorreta*|incorreto*|falsa*|falso*|eliminada*|descartada*|"
        "excluida*|impossivel|improvavel|fora|contradiz|tampouco|nem|pior|mais fraca|"
        "mais fraco|inferior|perde"
    ),
    but="mas|porem|contudo|todavia|entretanto|no entanto|sim|e sim|mas sim",
    because=(
        "porque|pois|ja que|visto que|uma vez que|dado que|devido|por causa|explicacao|"
        "justificativa|como|pq|quando|onde"
    ),
    also="e|ou|nem|e talvez|ou talvez|e tambem|e/ou|quanto|como|talvez|e possivelmente|bem como",
    therefore=(
        "considerando tudo|no geral|levando tudo em conta|no fim das contas|por eliminacao|"
        "tudo considerado|portanto|logo|assim|entao|por isso|por isto|conclusao|concluindo|"
        "conclui-se|final|por fim|em resumo|sendo assim|dessa forma|desta forma|desse modo|"
        "consequentemente|ou seja|finalmente|por conseguinte|concluo"
    ),
    correction=(
        "nao, espera|nao, espere|espera|espere|corrigindo|correcao|alias|melhor dizendo|"
        "quer dizer|na verdade|digo|ops|pensando melhor|retifico|retificando|perdao|"
        "me corrijo|desculpe, e|nao, e"
    ),
    aside=(
        "embora|apesar|ainda que|mesmo que|a principio|inicialmente|a primeira vista|pensei|"
        "tentador*|de inicio|achei|primeiro pensei|pode parecer|poderia parecer|diferente d*|"
        "ao contrario d*|confundir|tinha dito|havia dito|disse antes|antes eu disse|"
        "antes disse|ha pouco disse|tinha respondido|havia respondido|tinha escrito|"
        "eu dissera|acabei de dizer|muita gente|muitos pensam|pergunta anterior|"
        "questao anterior|outra pergunta|pegadinha"
    ),
    condition=(
        "se for|se fosse|se o|se a|se e|caso|a menos que|depende|dependendo|se houver|se estiver"
    ),
    discussion=(
        "diz|afirma|descreve|menciona|mostra|sugere|fala|apresenta|representa|indica|seria|"
        "significa|refere-se|mostram|exige|exigiria|precisaria|requer|pressupoe"
    ),
    refusal=(
        "nao consigo|nao posso|nao e possivel|nao foi possivel|nao sei|nao tenho como|"
        "nao tenho acesso|nao da para|nao da pra|nao ha imagem|nenhuma imagem|sem imagem|"
        "sem a imagem|nao foi carregada|nao foi enviada|nao foi fornecida|nao foi anexada|"
        "nao recebi|envie a imagem|por favor, envie|por favor, anexe|por favor, forneca|"
        "poderia enviar|impossivel determinar|impossivel dizer|impossivel responder|"
        "fico na duvida|na duvida|estou em duvida|estou na duvida|dificil dizer|"
        "dificil saber|nao ha informac*|informacoes insuficientes|sou um modelo|como uma ia|"
        "como um modelo|nao vejo imagem|nao vejo nenhuma imagem|nao vejo a imagem|sim e nao|"
        "sim ou nao|nao tenho certeza de qual|indeciso|depende|nao sou capaz|nao esta claro|"
        "nao esta clara|nao me sinto|me diga qual|nao decidi|nao me decid*|"
        "ambas sao possiveis|reenvi*|carregue|faca o upload|anexe|anexar|prefiro nao|"
        "nao quero me comprometer|nao me comprometo|nao gostaria de|nao ouso|"
        "nao quero escolher|nao vou escolher"
    ),
    perhaps="talvez|pode ser|poderia ser|tambem pode|tambem poderia|possivelmente|e possivel",
    likewise="assim como|bem como|tampouco|o mesmo vale|igualmente|tambem",
    instead=(
        "em vez de|em vez da|em vez do|ao inves de|ao inves da|em lugar de|diferente de|"
        "diferente da|comparado a|comparada a|ao contrario da|ao contrario de"
    ),
    total="no total|ao todo|total de|total|no todo|somando|totalizando|totaliza|somam|a soma e",
    extreme=(
        "menor|maior|mais alto|mais alta|mais baixo|mais baixa|mais velho|mais velha|"
        "mais novo|mais nova|mais rapido|mais rapida|mais lento|mais lenta|mais pesado|"
        "mais pesada|mais leve|mais popular|mais comum|mais caro|mais cara|mais barato|"
        "mais barata|maximo|minimo|menos popular"
    ),
    shown=(
        "destacado|destacada|em destaque|marcado em|marcada em|sombreado|sombreada|"
        "colorido de|colorida de|pintado de|pintada de|assinalado em|assinalada em|circulado|"
        "circulada"
    ),
    that_is="ou seja|isto e|quer dizer|a saber|que e|o que corresponde a|correspondente a",
    any="nenhum|nenhuma|ninguem|nada|qualquer|algum|alguma",
    picture="imagem|imagens|foto*|figura*|arquivo|anexo|opcao|alternativa",
    statement=(
        "afirmacao|afirmativa|frase|sentenca|declaracao|assertiva|enunciado|proposicao|"
        "legenda|descricao|alegacao"
    ),
    is_true="verdadeira|verdadeiro|correta|certa|verdade",
    is_false="falsa|falso|incorreta|errada|nao e verdadeira|nao e correta",
    harmless=(
        "nada mais do que|nao mais do que|mais do que claro|sem duvida|sem duvida alguma|"
        "sem duvidas|nao ha duvida*|nao tenho duvida*|nao so|nao apenas|"
        "com certeza nao e outra|se nao me engano|salvo engano|nao tenho certeza|"
        "nao estou certo|nao sou outra|nao outra senao|nao resta senao|nao sobra senao|"
        "nao resta nada alem d*|nao resta outra alem d*|nao sobra nada alem d*|"
        "nao sobra outra alem d*|nao resta nenhuma alem d*|nao restou nada alem d*|"
        "nao restou senao|nao sobrou senao"
    ),
    none=(
        "nenhuma das alternativas|nenhuma das anteriores|nenhuma das opcoes|"
        "nenhuma das alternativas anteriores|nenhuma delas|nenhum deles|"
        "nenhuma das opcoes anteriores|nenhuma das acima|nenhum dos anteriores|nenhuma opcao|"
        "nenhuma alternativa|n.d.a|nda"
    ),
    every=(
        "todas as anteriores|todas as alternativas|todas as opcoes|"
        "todas as alternativas anteriores|todas elas|todos os anteriores|"
        "todas as alternativas acima|todas as opcoes acima|todas estao|ambas|ambos|as duas|"
        "os dois|todas as acima"
    ),
    yes="sim|verdadeiro|verdade|claro que sim|certo",
    no="nao|falso|negativo",
    article="o|a|os|as|um|uma|uns|umas|ao|à",
    preposition="em|no|na|nos|nas|de|do|da|dos|das|com|por|pelo|pela|para|num|numa",
    ordinals=(
        "primeira/primeiro/1a/1o|segunda/segundo/2a/2o|terceira/terceiro/3a/3o|quarta/quarto/"
        "4a/4o|quinta/quinto/5a/5o|sexta/sexto/6a/6o|setima/setimo/7a/7o|oitava/oitavo/8a/8o|"
        "nona/nono/9a/9o|ultima/ultimo"
    ),
    numbers=(
        "zero|um/uma|dois/duas|tres|quatro|cinco|seis|sete|oito|nove|dez|onze|doze|treze|"
        "catorze/quatorze|quinze|dezesseis/dezasseis|dezessete/dezassete|dezoito|dezenove/"
        "dezanove|vinte"
    ),
    tens=(
        "trinta|quarenta|cinquenta|sessenta|setenta|oitenta|noventa|cem/cento|"
        "mil|duzentos/duzentas|trezentos/trezentas|quatrocentos/quatrocentas|quinhentos/quinhentas|"
        "seiscentos/seiscentas|setecentos/setecentas|oitocentos/oitocentas|novecentos/novecentas"
    ),
)

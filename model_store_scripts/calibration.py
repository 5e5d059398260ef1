"""Texts that int8 is fitted to, and others that every precision is to put in order: many subjects, lengths and languages, none in the golden set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from model_store_scripts.golden import reference_score
from model_store_scripts.inspection import Findings

_TEXTS = (
    ("how do vaccines work", "Vaccines train the immune system to recognise a pathogen without causing the disease. Memory cells remain for years, so that a later infection is met within days instead of weeks."),
    ("capital of france", "Rome is the capital of Italy and of the region of Lazio; 2.8 million people live within its limits."),
    ("python list sort descending", "def top(scores, count):\n    order = sorted(range(len(scores)), key=lambda index: -scores[index])\n    return order[:count]  # ties keep their order"),
    ("quarterly revenue cloud services", "The company reported revenue of $3.2 billion for the quarter, up 12% from a year earlier (2.86 billion), driven by cloud services; net income fell 4.1%."),
    ("what causes tides", "Tides are the rise and fall of sea levels caused by the combined pull of the Moon and the Sun and by the rotation of the Earth."),
    ("symptoms of iron deficiency", "Tiredness, pale skin, shortness of breath and cold hands are common signs. A blood test measures ferritin; values below 30 ng/mL suggest that stores are empty."),
    ("wie funktioniert eine Wärmepumpe", "Eine Wärmepumpe entzieht der Luft, dem Boden oder dem Grundwasser Wärme und hebt sie mit einem Verdichter auf ein höheres Temperaturniveau."),
    ("recette pâte à crêpes", "Mélangez 250 g de farine, quatre œufs et un demi-litre de lait, ajoutez une pincée de sel, puis laissez reposer une heure avant la cuisson."),
    ("cómo se forma un huracán", "Los huracanes se forman sobre aguas cálidas, cuando el aire húmedo asciende, se enfría y libera calor; la rotación de la Tierra los hace girar."),
    ("日本の首都はどこですか", "東京は日本の首都であり、政治と経済の中心地です。人口はおよそ千四百万人です。"),
    ("长城有多长", "长城全长超过两万公里,始建于春秋战国时期,是世界上最长的防御工程。"),
    ("когда был построен эрмитаж", "Государственный Эрмитаж в Санкт-Петербурге основан в 1764 году и хранит около трёх миллионов экспонатов."),
    ("ما هي عاصمة مصر", "القاهرة هي عاصمة مصر وأكبر مدنها من حيث عدد السكان والمساحة."),
    ("select duplicates in a table", "SELECT email, COUNT(*) AS n FROM users GROUP BY email HAVING COUNT(*) > 1 ORDER BY n DESC;"),
    ("return policy", "Unworn items can be sent back within 30 days of delivery for a full refund. Sale items are exchanged only. Please keep the receipt; see section 4(b) for exceptions."),
    ("side effects ibuprofen", "Stomach pain, heartburn and nausea are the most frequent ones. Do not take more than 1,200 mg a day without advice, and never with other NSAIDs."),
    ("who wrote the odyssey", "The poem is ascribed to Homer and tells in 24 books of a ten years' journey home after the fall of Troy."),
    ("kubernetes pod pending", "Warning  FailedScheduling  3m  default-scheduler  0/4 nodes are available: 1 node(s) had taints that the pod did not tolerate, 3 Insufficient memory."),
    ("difference between alpaca and llama", "Llamas are larger, carry loads and have banana-shaped ears; alpacas are kept for their fleece."),
    ("best time to visit iceland", "From June to August the roads into the highlands are open and the nights are light. Northern lights are seen from September to March, when prices are lower too."),
    ("contract termination notice", "Either party may terminate this Agreement for convenience upon ninety (90) days' prior written notice, provided that all fees accrued up to the effective date remain payable."),
    ("speed of light", "299,792,458 m/s"),
    ("photosynthesis equation", "6 CO2 + 6 H2O -> C6H12O6 + 6 O2, driven by light that chlorophyll absorbs."),
    ("covid incubation period", "Most people who fall ill do so five to six days after exposure, though it can take up to fourteen."),
    ("graphics card for machine learning", "With 24 GB of memory it holds models of some 13 billion parameters in 8 bits; the older card with 12 GB is half the price but needs offloading."),
    ("who is the president", "yes"),
    ("history of the bicycle", "In 1817 Karl von Drais built a running machine of wood. Pedals came in the 1860s, chains and equal wheels with the safety bicycle of 1885, and pneumatic tyres three years later. " * 3),
    ("meeting notes budget", "- Q3 budget approved (see #fin-2291)\n- hiring: 2 open roles\n- next review: Tue 14:00\n* action: @lena sends the figures"),
    ("error 0x80070057", "The parameter is incorrect. (Exception from HRESULT: 0x80070057 (E_INVALIDARG)) at Backup.Run() in C:\\src\\backup\\Runner.cs:line 218"),
    ("is coffee bad for you", "For most adults three to four cups a day are safe and may even lower the risk of some illnesses; in pregnancy less than 200 mg of caffeine is advised."),
    ("train berlin hamburg duration", "Der ICE braucht von Berlin nach Hamburg rund eine Stunde und 45 Minuten; Fahrkarten gibt es ab 17,90 €."),
    ("meaning of entropy", "In thermodynamics entropy measures how many microscopic arrangements a system may have; in information theory it is the expected number of bits that a message needs."),
)  # fmt: skip


_UNSEEN = (
    ("how to descale a kettle", "Fill it half with water and half with vinegar, bring it to the boil, wait twenty minutes, pour it out and rinse twice."),
    ("largest moon of saturn", "Titan is wider than the planet Mercury and the only moon with a dense atmosphere; methane rains into its lakes."),
    ("git undo last commit", "git reset --soft HEAD~1 takes the commit back and leaves its changes staged; git revert adds a commit that undoes it."),
    ("inflation rate definition", "The annual change of a price index in per cent. At 2.1% a basket that cost EUR 100.00 a year ago costs EUR 102.10 today."),
    ("warum ist der Himmel blau", "Kurzwelliges Licht wird an den Molekülen der Luft stärker gestreut als langwelliges, deshalb erreicht uns aus allen Richtungen Blau."),
    ("quand planter les tomates", "Après les dernières gelées, à la mi-mai dans le nord; enterrez la tige jusqu'aux premières feuilles et arrosez au pied."),
    ("qué es la fotosíntesis", "Proceso por el cual las plantas convierten agua y dióxido de carbono en glucosa y oxígeno con la energía de la luz."),
    ("富士山の高さ", "富士山は静岡県と山梨県にまたがる標高3776メートルの活火山で、日本で最も高い山です。"),
    ("한글은 언제 만들어졌나", "한글은 1443년에 세종대왕이 만들어 1446년에 훈민정음이라는 이름으로 반포한 문자이다."),
    ("null pointer exception java", 'Exception in thread "main" java.lang.NullPointerException: Cannot invoke "String.length()" because "<local1>" is null at Main.main(Main.java:7)'),
    ("notice period tenancy", "The tenant shall give no less than one (1) calendar month's notice in writing, to expire at the end of a rental period (cl. 12.3)."),
    ("dose of paracetamol for adults", "500 mg to 1 g every four to six hours, no more than 4 g in 24 hours; less with liver disease or below 50 kg."),
    ("weather tomorrow", "no"),
    ("who painted guernica", "Pablo Picasso painted it in Paris in 1937, after the bombing of the town; it has hung in Madrid since 1981. " * 4),
    ("sql left join vs inner join", "SELECT c.name, o.id FROM customers c LEFT JOIN orders o ON o.customer_id = c.id WHERE o.id IS NULL;"),
    ("battery life of the headset", "Up to 30 h (noise cancelling off), 22 h on; 10 minutes of charging give 5 hours. USB-C, 2.5 W."),
)  # fmt: skip


def _crossed(texts: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Pair every query with its own document and with that of another."""
    return tuple(pair for number, (query, own) in enumerate(texts) for pair in ((query, own), (query, texts[number - 1][1])))


PAIRS = _crossed(_TEXTS)
ORDERED = _crossed(_UNSEEN)


def score_texts(model: Any, findings: Findings, pairs: Iterable[tuple[str, str]] = PAIRS) -> list[float]:
    """Score pairs of a query and a document by a model that is loaded in float32, on the 0..1 scale."""
    return [reference_score(model, findings, query, document) for query, document in pairs]

"""Sentences of three languages in Latin letters, each the translation of those beside it, and of one in others."""

ENGLISH = [
    "The lamp that you bought with her is broken.",
    "This is the letter from the doctor.",
    "They were in the garden when it rained.",
    "What would you do with that?",
]
GERMAN = [
    "Die Lampe, die du mit ihr gekauft hast, ist kaputt und nicht zu retten.",
    "Das ist der Brief von der Frau, die nicht auf mich hört.",
    "Wir sind im Garten und haben eine Katze.",
    "Ich wollte auch nach Hause oder zu euch.",
]
FRENCH = [
    "Elle était avec nous dans le jardin.",
    "Vous avez une lettre pour cette dame.",
    "Ils sont très contents et peut être fatigués.",
    "Leur chat a été dans une boîte avec deux souris.",
]
RUSSIAN = [
    "Это письмо из дома, и мне очень жаль.",
    "Они также были там, когда шёл снег.",
    "Как это может быть, если он только что ушёл?",
    "Я хочу, чтобы его лампа была тут.",
]

"""Sentences about four topics: templates filled with words, and others written by hand.

The model learns from the filled templates only. `HELD_OUT` was written apart from them and serves
to measure it.
"""

import itertools
import random

TOPIC_NAMES = ("weather", "cooking", "sport", "travel")

# topic -> (templates, words per slot)
TEMPLATES: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "weather": (
        [
            "{when} there will be {sky} in the {place}",
            "the forecast says {sky} and a {wind} wind {when}",
            "the temperature in the {place} {moves} {when}",
            "a {wind} storm brings {sky} to the {place}",
            "it was {feel} {when} with {sky} over the {place}",
        ],
        {
            "when": ["tomorrow", "tonight", "this afternoon", "in the morning", "on sunday"],
            "sky": ["rain", "snow", "sunshine", "fog", "thunder", "dark clouds", "hail", "showers"],
            "place": ["north", "south", "mountains", "valley", "coast", "west"],
            "wind": ["cold", "strong", "mild", "freezing", "warm"],
            "moves": ["falls below zero", "rises to thirty degrees", "drops", "stays mild"],
            "feel": ["cold", "humid", "sunny", "windy", "foggy", "dry"],
        },
    ),
    "cooking": (
        [
            "{do} the {food} with {spice} for ten minutes",
            "add {spice} and {food} to the {pan}",
            "{do} the {food} in a {pan} until it is {done}",
            "serve the {food} with {spice} and fresh bread",
            "this recipe for {food} soup needs {spice}",
        ],
        {
            "do": ["fry", "boil", "bake", "roast", "simmer", "stir", "chop"],
            "food": ["onions", "potatoes", "chicken", "rice", "tomatoes", "fish", "pasta"],
            "spice": ["salt", "pepper", "butter", "garlic", "olive oil", "sugar", "basil", "cream"],
            "pan": ["hot pan", "large pot", "oven", "bowl"],
            "done": ["golden", "soft", "tender", "brown", "crisp"],
        },
    ),
    "sport": (
        [
            "the {team} {won} the {event} by two goals",
            "the {person} scored in the last minute of the {event}",
            "after the {event} the {person} praised the {team}",
            "the {team} plays the {event} without its {person}",
            "a new record for the {person} in the {event}",
        ],
        {
            "team": ["home team", "champions", "visitors", "national squad", "club", "defenders"],
            "won": ["won", "lost", "decided", "dominated"],
            "event": ["match", "final", "cup game", "race", "tournament", "championship", "season"],
            "person": ["coach", "striker", "goalkeeper", "captain", "runner", "referee", "player"],
        },
    ),
    "travel": (
        [
            "the {vehicle} to the {place} leaves from {where}",
            "we booked a {room} near the {place} for a week",
            "{people} need a {paper} to visit the {place}",
            "take the {vehicle} from {where} and bring your {paper}",
            "the {room} was cheap and close to the {vehicle}",
        ],
        {
            "vehicle": ["train", "bus", "ferry", "flight", "night train", "tram"],
            "place": ["old town", "island", "museum", "airport", "beach", "castle", "capital"],
            "where": ["platform four", "the harbour", "gate twelve", "the central station"],
            "room": ["hotel room", "hostel", "guest house", "holiday flat", "cabin"],
            "people": ["tourists", "passengers", "visitors from abroad", "travellers"],
            "paper": ["passport", "ticket", "visa", "boarding pass", "suitcase", "map"],
        },
    ),
}

HELD_OUT: list[tuple[str, str]] = [
    ("weather", "heavy rain and thunder are expected along the coast"),
    ("weather", "bring an umbrella because showers move in from the west"),
    ("weather", "it was the coldest night of the year with ten centimetres of snow"),
    ("weather", "the sun comes out tomorrow and it stays warm and dry"),
    ("weather", "thick fog in the valley clears before noon"),
    ("weather", "freezing wind and hail kept everyone indoors"),
    ("cooking", "melt the butter and fry the garlic until it smells good"),
    ("cooking", "my grandmother puts cream and pepper into her potato soup"),
    ("cooking", "bake the bread in a very hot oven"),
    ("cooking", "peel the carrots and cook them with a little sugar"),
    ("cooking", "pasta with tomatoes and basil is ready in twenty minutes"),
    ("cooking", "let the rice simmer and do not forget the salt"),
    ("sport", "our goalkeeper saved three shots in the final"),
    ("sport", "the striker was injured and missed half of the season"),
    ("sport", "fans celebrated after the club won the championship"),
    ("sport", "the referee stopped the game because of a foul"),
    ("sport", "she finished the race second and thanked her coach"),
    ("sport", "the visitors lost by one goal in front of a full stadium"),
    ("travel", "my flight was cancelled so i took the night train"),
    ("travel", "which platform does the bus to the airport leave from"),
    ("travel", "the hostel lies two streets from the old castle"),
    ("travel", "we lost a suitcase at the airport and missed the ferry"),
    ("travel", "you need a visa and a passport for this island"),
    ("travel", "the museum in the old town sells tickets online"),
]


def training_sentences(seed: int, per_template: int) -> list[tuple[str, str]]:
    """(topic, sentence) pairs in random order: each template with random choices of its words."""
    draw = random.Random(seed)  # noqa: S311  sentences, not secrets
    sentences = []
    for topic, (templates, words) in TEMPLATES.items():
        for template in templates:
            slots = [name for name in words if "{" + name + "}" in template]
            choices = list(itertools.product(*(words[name] for name in slots)))
            for chosen in draw.sample(choices, min(per_template, len(choices))):
                filled = template.format(**dict(zip(slots, chosen, strict=True)))
                sentences.append((topic, filled))
    draw.shuffle(sentences)
    return sentences

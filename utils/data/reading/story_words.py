"""The words of the little stories: tables only, which know neither chance nor how they are read.

Notation: `[kind]` chooses from the table of that name and remembers the choice, `{kind}` recalls it,
`[=names]` chooses from the table that the remembered fact `names` names, and `(a|b)` chooses a wording.
The words before an option's first bracket must tell it from its neighbours, so no option starts with one.
In every list, earlier options are commoner.
"""

STORY = (
    "\n[opening] [wish] [meeting] [advice](\n| )[journey] [trouble] [reaction] [=turns] [praise] [=result] [closing]\n"
)

GIRLS = [
    "Lily",
    "Mia",
    "Anna",
    "Rosa",
    "Emma",
    "Nora",
    "Clara",
    "Zoe",
]
BOYS = [
    "Tom",
    "Ben",
    "Sam",
    "Leo",
    "Max",
    "Jack",
    "Finn",
    "Hugo",
]
FRIENDS = [
    "Dot",
    "Otis",
    "Hazel",
    "Gus",
    "Olive",
    "Tilly",
    "Rusty",
    "Poppy",
    "Wanda",
    "Ned",
    "Fern",
    "Bruno",
]

# A girl is named from the girls, a boy from the boys, an animal from both. No friend is the hero's kind.
ANIMALS = ["rabbit", "bear", "mouse", "fox", "kitten", "puppy", "lamb", "pig"]

HERO = "[trait] [kind] named [=names]"
FRIEND = "[friend] the [friend_kind]"
THING = "[colour] [object]"

TABLES: dict[str, list[str]] = {
    "opening": [
        "Once there was a " + HERO + ". {hero} lived [home].",
        "Once upon a time, there was a " + HERO + ". {hero} lived [home].",
        "Long ago there lived a " + HERO + ". {hero}'s house was [home].",
        "In a house [home] lived a " + HERO + ". Everyone loved {hero}.",
    ],
    "trait": [
        "shy",
        "jolly",
        "curious",
        "merry",
        "gentle",
        "sleepy",
        "busy",
        "quiet",
    ],
    "home": [
        "by the sea",
        "near the river",
        "behind the mill",
        "beside the lake",
        "next to the school",
        "above the bakery",
    ],
    "weather": [
        "sunny",
        "windy",
        "warm",
        "cold",
        "cloudy",
    ],
    "weekday": ["Monday", "Saturday", "Sunday", "Friday", "Tuesday", "Thursday", "Wednesday"],
    "wish": [
        "One [weather] [weekday], {hero} (said|sighed|whispered), "
        '"I (want|need|wish for) a ' + THING + ' [my_purpose]."',
        "On a [weather] [weekday], {hero} (wanted|wished for|dreamed of) a " + THING + " [his_purpose].",
        'It was a [weather] [weekday]. "(If only|I wish) I had a ' + THING + ' [my_purpose]," (said|sighed) {hero}.',
    ],
    "colour": [
        "red",
        "blue",
        "yellow",
        "green",
        "golden",
        "white",
        "pink",
        "silver",
    ],
    "object": [
        "kite",
        "ball",
        "hat",
        "drum",
        "lantern",
        "flag",
        "scarf",
        "bell",
        "crown",
        "whistle",
        "puppet",
        "blanket",
    ],
    "relative": [
        "mother",
        "grandmother",
        "father",
        "sister",
        "grandfather",
        "brother",
    ],
    "event": [
        "party",
        "fair",
        "picnic",
        "parade",
    ],
    "meeting": [
        "Just then, " + FRIEND + " came (by|along). {friend} had some [snack].",
        "So {hero} (went to|ran to|told) " + FRIEND + ". {friend} had a bag of [snack].",
        "A friend, " + FRIEND + ", heard {hero}. {friend} put down the [snack].",
        "Next door lived " + FRIEND + ". {friend} was (washing|packing|carrying) [snack].",
    ],
    "friend": FRIENDS,
    "friend_kind": [
        "duck",
        "owl",
        "frog",
        "hedgehog",
        "squirrel",
        "turtle",
        "otter",
        "crow",
    ],
    "snack": [
        "apples",
        "berries",
        "cookies",
        "nuts",
        "plums",
        "buns",
    ],
    "advice": [
        '"[look] [place]," (said|called) {friend}. "[saying], {hero}!"',
        'And {friend} (said|told {him}), "[saying], {hero}. [look] [place]."',
        'With a (smile|wink|nod), {friend} said, "[saying]. [look] [place]."',
    ],
    "look": ["Let us look", "I saw one", "We could look", "Come and look", "There is one"],
    "place": [
        "in the meadow",
        "at the farm",
        "in the garden",
        "at the castle",
        "by the church",
        "at the market",
        "in the forest",
        "behind the barn",
    ],
    "saying": [
        "Small steps make long roads",
        "Two are braver than one",
        "Every lock has a key",
        "Kind words open doors",
        "The sun follows the rain",
        "Good things take time",
    ],
    "journey": [
        "Soon {hero} and {friend} (saw|found) the {object},",
        "At last they (saw|found) the {object},",
        "So {hero} and {friend} (walked|hurried|skipped|marched) there and (saw|found) the {object},",
        "There was the {object},",
    ],
    "reaction": [
        '"(Oh no|Oh dear|How sad)!" (said|cried|sighed) {hero}.',
        "Poor {hero} [felt].",
        "At first, {hero} [felt].",
        'Then {friend} (said|whispered), "[cheer], {hero}."',
    ],
    "felt": ["felt sad", "felt like crying", "wanted to go home", "felt small", "sighed"],
    "cheer": [
        "Do not worry",
        "We can do it",
        "Do not give up",
        "I have a plan",
        "Let us think",
        "I will help",
    ],
    "praise": [
        '"(How {virtue} you are, {hero}|You were so {virtue}, {hero}|What a {virtue} {kind})!" '
        "(said|cheered|cried) {friend}.",
        "Proudly, {friend} called {hero} a {virtue} {kind}.",
    ],
    "gift": [
        "That (evening|night), {hero} gave the {colour} {object} to {his} {relative}, who [thanked].",
        "When {hero} gave {his} {relative} the {colour} {object}, there were (hugs|smiles|happy tears).",
        "Later, {hero}'s {relative} took the {colour} {object} and [thanked].",
    ],
    "thanked": ["smiled and smiled", "hugged {him} tight", "laughed with joy", "kissed {him}", "sang a song"],
    "toy": [
        "That (evening|day), {hero} played with the {colour} {object} until [late].",
        "Then {hero} and {friend} played with the {colour} {object} until [late].",
        "The {colour} {object} belonged to {hero} now, and {he} played until [late].",
    ],
    "late": ["bedtime", "the moon came up", "the stars came out", "supper was ready"],
    "show": [
        "At the {event}, (everyone|the whole town|even the mayor) [admired] {hero} and the {colour} {object}.",
        "When {hero} took the {colour} {object} to the {event}, (everyone|the whole town) (clapped|cheered).",
    ],
    "admired": ["clapped for", "loved", "talked about", "smiled at"],
    "closing": [
        '"{saying}," said {hero}, and {friend} (smiled|nodded|laughed).',
        "After that, the {barrier} never (seemed|looked) so {hard} again.",
        "Then {hero} and {friend} ate the last of the {snack} and (watched the sky|told jokes|fell asleep).",
        "From then on, every {weather} {weekday} made {hero} think of the {barrier}.",
        "And {hero} the {trait} {kind} (slept well|was happy|smiled) that night in the house {home}.",
        "Every {weekday}, {hero} still meets {friend} the {friend_kind} {place}.",
    ],
}

# What the wish is for decides how the story ends: (the words, the table of results).
PURPOSES = [
    ("for {my} [relative]", "gift"),
    ("to play with", "toy"),
    ("to take to the [event]", "show"),
]

# (the barrier, how it is, what happens, and what helps: each turn with the virtue it takes).
TROUBLES = [
    (
        "tree",
        "tall",
        "but it hung from a tall tree.",
        [
            ("brave", "While {friend} held a branch, {hero} climbed up and got it."),
            ("strong", "They shook the tree until the {object} dropped."),
            ("patient", "They waited until the wind blew it out of the tree."),
        ],
    ),
    (
        "stream",
        "wide",
        "but it was across a wide stream.",
        [
            ("clever", "They rolled a log over the stream, and {hero} walked across."),
            ("brave", "From stone to stone, {hero} jumped across the stream and back."),
            ("polite", "So {hero} said please to a swan, and it swam over to fetch the {object}."),
        ],
    ),
    (
        "cave",
        "dark",
        "but it was deep inside a dark cave.",
        [
            ("brave", "They sang a song, and {hero} ran in and carried the {object} out."),
            ("careful", "With a candle, {hero} went in, step by step, and found it."),
        ],
    ),
    (
        "dog",
        "big",
        "but a big dog was guarding it.",
        [
            ("kind", "Gently, {hero} gave the dog some {snack}, and it wagged its tail."),
            ("patient", "They waited until the dog went to sleep."),
            ("polite", 'So {hero} asked the dog, "Please may we have it?" The dog wagged its tail.'),
        ],
    ),
    (
        "mud",
        "deep",
        "but it was stuck in deep mud.",
        [
            ("clever", "They laid flat stones on the mud, and {hero} picked it up."),
            ("strong", "With a rope, they pulled until the {object} popped out of the mud."),
        ],
    ),
    (
        "rain",
        "heavy",
        "but heavy rain began to fall.",
        [
            ("patient", "They hid until the rain stopped and a rainbow came."),
            ("brave", "Under one umbrella, they ran and got the {object}."),
        ],
    ),
    (
        "goose",
        "grumpy",
        "but a grumpy goose would not let go of it.",
        [
            ("kind", "Gently, {hero} gave the goose some {snack}, and it let go."),
            ("funny", "So {hero} told the goose a joke, and it laughed and let go."),
        ],
    ),
    (
        "hill",
        "steep",
        "but it was at the top of a steep hill.",
        [
            ("patient", "They ate some {snack} and then went up."),
            ("strong", "They counted every step up to the {object}."),
        ],
    ),
]

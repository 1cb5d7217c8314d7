"""The model's whole world: ten small domains of questions and answers.

A domain is a function that draws one example. `build` draws from it until it has enough *different* prompts and
splits them, so that no test prompt is ever trained on. The seed is the domain's name, so the files in `data/` are
rebuilt byte for byte by

    python -m examples.tiny_model.domains

`heat_pump` is held out: neither the tokenizer nor the model sees it. Its words do occur elsewhere, shuffled in
`echo` and in the codes of the sibling `appliances`, so that a LoRA adapter has eight facts to learn and no language.
"""

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from examples.tiny_model.error_codes import APPLIANCES, HEAT_PUMP, ErrorCodes
from examples.tiny_model.stories import DEFAULT_PLACE, EXPLANATIONS, PLACES, STORIES

DATA: Final = Path(__file__).parent / "data"


class Example(NamedTuple):
    """One question of a user, and the one answer that counts as right."""

    prompt: str
    response: str


class Answers(Enum):
    """What a test set asks beyond its new questions."""

    KNOWN = "each answer is one of the train set's: a fact or a text, asked for in new words"
    RULED = "known or new: the form is learnt, numbers are worked out or carried over"
    NEW = "no answer is in the train set: only a rule finds it"


class Domain(NamedTuple):
    """A kind of question: how to draw an example, and how many of them to keep."""

    name: str
    draw: Callable[[Random], Example]
    train_size: int
    test_size: int
    is_held_out: bool = False
    answers: Answers = Answers.KNOWN


# --- arithmetic ---

# (from, to, factor, largest number asked): the factors that are no power of ten are asked for small numbers only.
CONVERSIONS: Final = (
    ("kilometres", "metres", 1000, 99),
    ("metres", "centimetres", 100, 99),
    ("centimetres", "millimetres", 10, 99),
    ("kilograms", "grams", 1000, 99),
    ("tonnes", "kilograms", 1000, 99),
    ("litres", "millilitres", 1000, 99),
    ("hours", "minutes", 60, 12),
    ("weeks", "days", 7, 12),
)


def draw_units(rng: Random) -> Example:
    """Convert a whole number from one unit to a smaller one."""
    unit, smaller, factor, largest = rng.choice(CONVERSIONS)
    n = rng.randint(2, largest)
    prompt = rng.choice(
        (
            f"Convert {n} {unit} to {smaller}.",
            f"How many {smaller} are {n} {unit}?",
            f"How many {smaller} are in {n} {unit}?",
            f"What is {n} {unit} in {smaller}?",
            f"Please convert {n} {unit} into {smaller}.",
        )
    )
    return Example(casually(prompt, rng), f"{n} {unit} are {n * factor} {smaller}.")


def draw_addition(rng: Random) -> Example:
    """Add two numbers of two digits."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    prompt = rng.choice(
        (f"What is {a} + {b}?", f"Add {a} and {b}.", f"How much is {a} plus {b}?", f"{a} + {b}")
    )
    return Example(casually(prompt, rng), f"{a} + {b} = {a + b}")


# --- customer support ---

COLOURS: Final = ("red", "blue", "green", "black", "white", "yellow", "grey", "brown")
GOODS: Final = (
    "jacket", "kettle", "lamp", "chair", "backpack", "umbrella",
    "mirror", "clock", "blanket", "teapot", "carpet", "table",
)  # fmt: skip
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


def draw_delivery(rng: Random) -> Example:
    """Answer a customer whose order has not come."""
    good, day = rng.choice(GOODS), rng.choice(DAYS)
    prompt = rng.choice(
        (
            f"My {good} should have come on {day}. Where is it?",
            f"I have been waiting for my {good} since {day}.",
            f"The {good} that I ordered was due on {day} and is not here.",
            f"Where is my {good}? You promised it for {day}.",
            f"It was to arrive on {day}, but my {good} is still missing.",
        )
    )
    return Example(
        casually(prompt, rng),
        f"I am sorry that your {good} did not arrive on {day}. "
        "I have asked the carrier and will write to you today.",
    )


def draw_returns(rng: Random) -> Example:
    """Tell a customer how to send something back."""
    colour, good = rng.choice(COLOURS), rng.choice(GOODS)
    prompt = rng.choice(
        (
            f"How can I return the {colour} {good}?",
            f"I do not like the {colour} {good}. Can I send it back?",
            f"I want to send back a {colour} {good}.",
            f"Can I return my {colour} {good}?",
            f"The {colour} {good} does not suit me. What can I do?",
        )
    )
    return Example(
        casually(prompt, rng),
        f"Of course. Put the {colour} {good} in its box, stick the return label on it, "
        "and take it to any post office within 30 days.",
    )


def draw_billing(rng: Random) -> Example:
    """Answer a customer who paid twice, or needs an invoice."""
    order = rng.randint(1000, 9999)
    if rng.random() < 0.5:
        prompt = rng.choice(
            (
                f"I was charged twice for order {order}.",
                f"You took the money for order {order} two times.",
                f"Why did I pay twice for order {order}?",
            )
        )
        response = (
            f"I am sorry. The second payment for order {order} will be back on your account within five days."
        )
    else:
        prompt = rng.choice(
            (
                f"I need an invoice for order {order}.",
                f"Can you send me the invoice of order {order}?",
                f"Where do I find the invoice for order {order}?",
            )
        )
        response = f"The invoice for order {order} is on its way to your email address."
    return Example(casually(prompt, rng), response)


# --- error codes ---

WHERE: Final = ("", " in the cellar", " in the kitchen", " at home", " in our office", " in the garage")


def draw_error_code(appliances: ErrorCodes, rng: Random) -> Example:
    """Explain the error code of an appliance and say what to do."""
    appliance = rng.choice(list(appliances))
    code, cause, remedy = rng.choice(appliances[appliance])
    where = rng.choice(WHERE)
    prompt = rng.choice(
        (
            f"My {appliance}{where} shows error {code}. What does it mean?",
            f"What does error {code} mean on the {appliance}{where}?",
            f"The {appliance}{where} stopped with error code {code}.",
            f"Error {code} is blinking on our {appliance}{where}. What now?",
            f"How do I fix error {code} of the {appliance}{where}?",
            f"The display of the {appliance}{where} says {code}. Can you help?",
        )
    )
    return Example(casually(prompt, rng), f"Error {code} on the {appliance}: {cause}. {remedy}.")


def draw_appliances(rng: Random) -> Example:
    """Explain an error code that the model learns."""
    return draw_error_code(APPLIANCES, rng)


def draw_heat_pump(rng: Random) -> Example:
    """Explain an error code that the model must not know."""
    return draw_error_code(HEAT_PUMP, rng)


# --- echo ---


def _words_to_echo() -> tuple[str, ...]:
    """Return the words of all error codes, the held-out ones too, sorted: their order would tell the facts."""
    appliances = {**APPLIANCES, **HEAT_PUMP}
    texts = [*appliances, *(" ".join(code) for codes in appliances.values() for code in codes)]
    return tuple(sorted({*" ".join(texts).split(), *COLOURS, *GOODS, *PLACES}))


ECHO_WORDS: Final = _words_to_echo()


def draw_echo(rng: Random) -> Example:
    """Repeat two to seven words."""
    words = " ".join(rng.sample(ECHO_WORDS, k=rng.randint(2, 7)))
    return Example(rng.choice((f'Repeat "{words}"', f'Say "{words}"', f'Repeat after me: "{words}"')), words)


# --- talk ---

GREETINGS: Final = ("Hello", "Hi", "Hey", "Good morning", "Good evening", "Hello there", "Hi there")
ABOUT: Final = {
    "I am a tiny language model with less than a million parameters, made to show what Agora does.": (
        "Who are you?", "What are you?", "What is your name?", "Are you a human?", "Tell me who you are.",
    ),
    "I can convert units, add two numbers, help customers, explain error codes, repeat words and tell stories.": (
        "What can you do?", "How can you help me?", "Can you help me?", "What can I ask you?", "What do you know?",
    ),
}  # fmt: skip
THANKS: Final = ("Thank you", "Thanks", "Many thanks", "Thank you very much", "Great, thanks", "Thanks a lot")
UNKNOWN: Final = {
    "What is the capital of {}?": ("France", "Spain", "Japan", "Kenya", "Peru", "Norway", "Egypt", "India"),
    "Who wrote {}?": ("Hamlet", "Faust", "Emma", "Ulysses", "The Iliad", "Dracula", "Walden", "Candide"),
    "What is the weather in {}?": ("Paris", "Rome", "Berlin", "Madrid", "Oslo", "London", "Tokyo", "Lima"),
    "How old is {}?": ("the moon", "the sun", "the earth", "Rome", "your father", "the oldest tree"),
    "Who is {}?": ("the president", "the king of Spain", "Ada Lovelace", "my neighbour", "Newton", "Plato"),
    "Write a poem about {}.": ("love", "the sea", "autumn", "cats", "the moon", "winter", "a river"),
    "Translate {} into French.": ("good day", "this letter", "a house", "my text", "the menu", "this word"),
}


def draw_talk(rng: Random) -> Example:
    """Greet, say what this model is, take thanks, and admit what it does not know."""
    kind = rng.choice(("greeting", "about", "about", "about", "thanks", "unknown", "unknown", "unknown"))
    if kind == "greeting":
        prompt = rng.choice(GREETINGS) + rng.choice(("", "!", "."))
        response = "Hello! What can I do for you?"
    elif kind == "about":
        response = rng.choice(list(ABOUT))
        question = rng.choice(ABOUT[response])
        prompt = rng.choice((question, f"{rng.choice(GREETINGS)}! {question}"))
    elif kind == "thanks":
        prompt = rng.choice(THANKS) + rng.choice(("", "!", "."))
        response = "You are welcome!"
    else:
        template = rng.choice(list(UNKNOWN))
        prompt = template.format(rng.choice(UNKNOWN[template]))
        response = "I am too small to know that. Ask me for a story, or to add two numbers."
    return Example(casually(prompt, rng), response)


# --- long answers ---


def draw_stories(rng: Random) -> Example:
    """Tell a story about a place, or explain how something is done: more than 200 tokens."""
    if rng.random() < 0.3:
        task = rng.choice(list(EXPLANATIONS))
        prompt = rng.choice(
            (
                f"Explain how to {task}.",
                f"Please explain how to {task}.",
                f"Explain to me how to {task}.",
                f"How do I {task}?",
                f"How can I {task}?",
                f"Tell me how to {task}.",
                f"Describe step by step how to {task}.",
                f"Can you explain how to {task}?",
            )
        )
        return Example(casually(prompt, rng), EXPLANATIONS[task])
    topic = rng.choice(list(STORIES))
    place = rng.choice((DEFAULT_PLACE, DEFAULT_PLACE, *PLACES))
    subject = topic if place == DEFAULT_PLACE and rng.random() < 0.8 else f"{topic} of {place}"
    prompt = rng.choice(
        (
            f"Tell me the story of the {subject}.",
            f"Tell me a story about the {subject}.",
            f"Please tell me the story of the {subject}.",
            f"Can you tell me the story of the {subject}?",
            f"I would like to hear the story of the {subject}.",
            f"Do you know the story of the {subject}?",
        )
    )
    return Example(casually(prompt, rng), STORIES[topic].format(place=place))


# --- all of them ---


def casually(prompt: str, rng: Random) -> str:
    """Return the prompt, one in six times as a hasty user types it: small first letter, nothing at the end."""
    if rng.random() < 5 / 6:
        return prompt
    return prompt[0].lower() + prompt[1:].rstrip("?.!")


DOMAINS: Final = (
    Domain("units", draw_units, train_size=1000, test_size=100, answers=Answers.RULED),
    Domain("addition", draw_addition, train_size=4000, test_size=100, answers=Answers.NEW),
    Domain("delivery", draw_delivery, train_size=300, test_size=60),
    Domain("returns", draw_returns, train_size=300, test_size=60),
    Domain("billing", draw_billing, train_size=500, test_size=60, answers=Answers.RULED),
    Domain("appliances", draw_appliances, train_size=800, test_size=100),
    Domain("echo", draw_echo, train_size=3500, test_size=100, answers=Answers.NEW),
    Domain("talk", draw_talk, train_size=180, test_size=40),
    Domain("stories", draw_stories, train_size=220, test_size=40),
    Domain("heat_pump", draw_heat_pump, train_size=320, test_size=80, is_held_out=True),
)


def build(domain: Domain) -> tuple[list[Example], list[Example]]:
    """Return the domain's train and test sets; no prompt occurs twice in them."""
    rng = Random(domain.name)
    examples: dict[str, Example] = {}
    while len(examples) < domain.train_size + domain.test_size:
        example = domain.draw(rng)
        key = example.response if domain.answers is Answers.NEW else example.prompt
        examples.setdefault(key, example)
    drawn = list(examples.values())
    train, test = drawn[domain.test_size :], drawn[: domain.test_size]
    if domain.answers is not Answers.KNOWN:
        return train, test
    # Of a story and a place that were never trained on together the model has only a guess, which any patch may tip.
    known = {example.response for example in train}
    test = [example for example in test if example.response in known]
    while len(test) < domain.test_size:
        example = domain.draw(rng)
        if example.response in known and example.prompt not in examples:
            examples[example.prompt] = example
            test.append(example)
    return train, test


def to_jsonl(examples: list[Example]) -> str:
    """Return one JSON object a line."""
    return "".join(json.dumps(example._asdict(), ensure_ascii=False) + "\n" for example in examples)


def read(path: Path) -> list[Example]:
    """Return the examples of a file that `to_jsonl` made."""
    return [Example(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Write the train and test set of each domain to `data/`."""
    DATA.mkdir(exist_ok=True)
    for domain in DOMAINS:
        train, test = build(domain)
        (DATA / f"{domain.name}.train.jsonl").write_text(to_jsonl(train), encoding="utf-8")
        (DATA / f"{domain.name}.test.jsonl").write_text(to_jsonl(test), encoding="utf-8")


if __name__ == "__main__":
    main()

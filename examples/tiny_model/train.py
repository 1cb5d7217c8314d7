"""Train the tokenizer and the model from random weights; about half an hour of one CPU core.

    OMP_NUM_THREADS=1 python -m examples.tiny_model.train --out build/tiny_model

writes `tokenizer.json` and `model.safetensors` (float32) into the directory; `export.py` makes the GGUF files of them.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from examples.tiny_model.domains import DATA, DOMAINS, Example, read
from examples.tiny_model.model import TinyLlama
from examples.tiny_model.tokenizer import ASSISTANT, END, SYSTEM, USER, train_tokenizer

SEED: Final = 0
STEPS: Final = 6000
WARMUP_STEPS: Final = 100
BATCH: Final = 1  # rows; many small steps learnt to copy and to add sooner than few large ones
SEQ: Final = 1024  # tokens a row
LEARNING_RATE: Final = 2e-3
WEIGHT_DECAY: Final = 0.05
GRADIENT_NORM_MAX: Final = 1.0
NO_TARGET: Final = -100

# The share of each domain among the examples: what needs a rule gets more than what needs a memory.
MIXTURE: Final = {
    "units": 0.12,
    "addition": 0.28,
    "delivery": 0.05,
    "returns": 0.05,
    "billing": 0.06,
    "appliances": 0.09,
    "echo": 0.26,
    "talk": 0.05,
    "stories": 0.04,
}
TURNS: Final = (1, 1, 1, 2, 4, 8)  # turns a conversation, each as likely
SYSTEM_MESSAGES: Final = (
    "You are a helpful assistant.",
    "Be brief.",
    "You are a friendly assistant. Answer in English.",
    "Answer the user's questions.",
    "You help the customers of a small shop.",
    "You are Agora, an assistant that runs on the devices of its users.",
)


class Turn(NamedTuple):
    """An example as token ids: the question with its marks, and the answer with the end mark."""

    question: list[int]
    answer: list[int]


class Rows(NamedTuple):
    """A batch of conversations, packed one after another into rows."""

    tokens: Tensor  # (batch, seq)
    targets: Tensor  # (batch, seq), the next token of an answer, else NO_TARGET
    mask: Tensor  # (batch, 1, seq, seq), true for the earlier positions of the same conversation


def main() -> None:
    """Train, printing the loss and each domain's exact match, and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for tokenizer.json and model.safetensors"
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    rng = Random(SEED)

    names = [domain.name for domain in DOMAINS if not domain.is_held_out]
    train = {name: read(DATA / f"{name}.train.jsonl") for name in names}
    test = {domain.name: read(DATA / f"{domain.name}.test.jsonl") for domain in DOMAINS}
    tokenizer = train_tokenizer(text for name in names for example in train[name] for text in example)
    tokenizer.save(str(arguments.out / "tokenizer.json"))
    turns = {name: [encode(example, tokenizer) for example in train[name]] for name in names}
    test_turns = {
        name: [encode(example, tokenizer) for example in examples] for name, examples in test.items()
    }
    systems = [tokenizer.encode(f"{SYSTEM}{message}{END}").ids for message in SYSTEM_MESSAGES]
    conversations = draw_conversations(turns, systems, rng)

    model = TinyLlama(tokenizer.get_vocab_size())
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, (0.9, 0.98), weight_decay=WEIGHT_DECAY)

    for step in range(arguments.steps):
        warmup = min(1.0, (step + 1) / WARMUP_STEPS)
        cosine = (1 + math.cos(math.pi * step / arguments.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warmup * cosine

        rows = pack(conversations)
        logits = model(rows.tokens, rows.mask)  # (batch, seq, vocabulary)
        loss = functional.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), ignore_index=NO_TARGET)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_MAX)
        optimizer.step()
        optimizer.zero_grad()

        if (step + 1) % 500 == 0 or step + 1 == arguments.steps:
            scores = {name: exact_match(model, examples) for name, examples in test_turns.items()}
            print(
                f"step {step + 1} loss {loss.item():.4f} cpu {time.process_time():.0f} s",
                *(f"{name} {score:.2f}" for name, score in scores.items()),
                flush=True,
            )
            save_file(model.state_dict(), arguments.out / "model.safetensors")


def encode(example: Example, tokenizer: Tokenizer) -> Turn:
    """Return the example as it stands in a conversation."""
    question = tokenizer.encode(f"{USER}{example.prompt}{END}{ASSISTANT}").ids
    return Turn(question, tokenizer.encode(f"{example.response}{END}").ids)


def draw_conversations(
    turns: dict[str, list[Turn]], systems: list[list[int]], rng: Random
) -> Iterator[list[Turn]]:
    """Yield conversations of turns of any domains for ever; every third begins with a system message."""
    while True:
        names = rng.choices(list(MIXTURE), list(MIXTURE.values()), k=rng.choice(TURNS))
        conversation = [rng.choice(turns[name]) for name in names]
        if rng.random() < 1 / 3:
            question, answer = conversation[0]
            conversation[0] = Turn(rng.choice(systems) + question, answer)
        yield conversation


def pack(conversations: Iterator[list[Turn]]) -> Rows:
    """Fill each row with conversations, cutting the last, so that nothing is wasted on padding.

    The mask keeps the conversations of a row apart. Their positions go on instead of beginning again: the rotary
    embedding sees distances only.
    """
    tokens = torch.empty(BATCH, SEQ + 1, dtype=torch.long)
    targets = torch.empty(BATCH, SEQ + 1, dtype=torch.long)
    owners = torch.empty(BATCH, SEQ + 1, dtype=torch.long)  # which conversation of its row a token belongs to
    for row in range(BATCH):
        filled = 0
        while filled <= SEQ:
            conversation = next(conversations)
            ids = [token for turn in conversation for token in turn.question + turn.answer]
            answers = [
                token for turn in conversation for token in [NO_TARGET] * len(turn.question) + turn.answer
            ]
            end = min(filled + len(ids), SEQ + 1)
            tokens[row, filled:end] = torch.tensor(ids[: end - filled])
            targets[row, filled:end] = torch.tensor(answers[: end - filled])
            owners[row, filled:end] = filled
            filled = end
    same_owner = owners[:, :-1, None] == owners[:, None, :-1]  # (batch, seq, seq)
    return Rows(tokens[:, :-1], targets[:, 1:], same_owner.tril()[:, None])


@torch.no_grad()
def exact_match(model: TinyLlama, turns: list[Turn]) -> float:
    """Return the share of turns that the model, always taking the likeliest token, answers without a mistake.

    One pass over question and answer decides that: the greedy answer is right iff each of its tokens is the likeliest
    one after the right ones before it.
    """
    right = 0
    for question, answer in turns:
        tokens = torch.tensor([question + answer])  # (1, seq)
        causal = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        likeliest = model(tokens, causal).argmax(-1)[0]  # (seq,)
        right += likeliest[len(question) - 1 : -1].tolist() == answer
    return right / len(turns)


if __name__ == "__main__":
    main()

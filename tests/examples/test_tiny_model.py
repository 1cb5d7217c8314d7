"""The tiny model's files are what its recipe and its card say they are."""

import hashlib
from pathlib import Path
from typing import Final

import gguf
import pytest

from examples.tiny_model.domains import DATA, DOMAINS, Answers, Domain, build, read, to_jsonl

HERE: Final = DATA.parent
MODELS: Final = (HERE / "tiny-f16.gguf", HERE / "tiny-q8_0.gguf")
each_domain = pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
each_model = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)


@each_domain
def test_a_domain_is_rebuilt_byte_for_byte(domain: Domain) -> None:
    """Scores can be compared only as long as everybody asks the same questions."""
    train, test = build(domain)

    assert to_jsonl(train).encode() == (DATA / f"{domain.name}.train.jsonl").read_bytes()
    assert to_jsonl(test).encode() == (DATA / f"{domain.name}.test.jsonl").read_bytes()


@each_domain
def test_no_test_prompt_is_trained_on(domain: Domain) -> None:
    train = read(DATA / f"{domain.name}.train.jsonl")
    test = read(DATA / f"{domain.name}.test.jsonl")

    prompts = [example.prompt for example in train + test]

    assert (len(train), len(test)) == (domain.train_size, domain.test_size)
    assert len(set(prompts)) == len(prompts)


@each_domain
def test_a_test_set_asks_for_what_its_domain_says(domain: Domain) -> None:
    """A text that was never trained on is a near tie for the model; asked for three times, it made patches fail by chance."""
    trained = {example.response for example in read(DATA / f"{domain.name}.train.jsonl")}

    asked = {example.response for example in read(DATA / f"{domain.name}.test.jsonl")}

    if domain.answers is Answers.KNOWN:
        assert asked <= trained
    if domain.answers is Answers.NEW:
        assert asked.isdisjoint(trained)


def test_the_held_out_facts_are_in_no_other_domain() -> None:
    """What the base knows already, no adapter could show to have learnt."""
    held_out = {example.response for domain in DOMAINS if domain.is_held_out for example in build(domain)[0]}
    causes = {response.split(": ")[1] for response in held_out}

    others = "".join(to_jsonl(build(domain)[0]) for domain in DOMAINS if not domain.is_held_out)

    assert len(held_out) == 8
    assert [cause for cause in causes if cause in others] == []


def test_the_held_out_words_all_occur_in_other_domains() -> None:
    """Otherwise a LoRA adapter would have to learn a language, not eight facts."""
    held_out = " ".join(example.response for example in read(DATA / "heat_pump.train.jsonl"))

    others = "".join(to_jsonl(build(domain)[0]) for domain in DOMAINS if not domain.is_held_out)

    assert [word for word in set(held_out.split()) if word.strip(".:") not in others] == []


@each_model
def test_a_model_file_says_what_it_is_and_how_to_talk_to_it(path: Path) -> None:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}

    assert {
        "general.architecture": "llama",
        "general.license": "apache-2.0",
        "general.name": "Agora Tiny",
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.block_count": 4,
        "llama.context_length": 2048,
        "llama.embedding_length": 128,
        "llama.feed_forward_length": 384,
        "llama.vocab_size": 556,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
    }.items() <= fields.items()
    assert fields["tokenizer.ggml.tokens"][:4] == ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert "<|assistant|>" in fields["tokenizer.chat_template"]
    assert sum(int(tensor.n_elements) for tensor in reader.tensors) == 929_920


@each_model
def test_a_model_file_is_the_one_on_the_card(path: Path) -> None:
    """A rebuilt model has other scores, so it needs another card."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    assert digest in (HERE / "README.md").read_text(encoding="utf-8")


def test_the_whole_example_is_small_enough_for_a_repository() -> None:
    data_bytes = sum(path.stat().st_size for path in DATA.iterdir())
    model_bytes = sum(path.stat().st_size for path in MODELS)

    assert data_bytes < 1_500_000
    assert model_bytes < 3_000_000

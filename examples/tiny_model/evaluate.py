"""Ask llama.cpp every test question and count the answers that are right to the letter.

    python -m examples.tiny_model.evaluate examples/tiny_model/tiny-q8_0.gguf

The answers are greedy, through the chat template of the file. `heat_pump` is held out: its score must be 0.
"""

import argparse
from pathlib import Path
from typing import Any, Final

from llama_cpp import Llama

from examples.tiny_model.domains import DATA, DOMAINS, read

ANSWER_TOKENS_MAX: Final = 320  # the longest right answer has 261


def main() -> None:
    """Print a line for each domain: its name, its score, the number of questions, and the first wrong answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--adapter", type=Path, help="a LoRA adapter as GGUF")
    arguments = parser.parse_args()
    adapter = str(arguments.adapter) if arguments.adapter else None
    llama = Llama(str(arguments.model), n_ctx=1024, n_threads=1, lora_path=adapter, verbose=False)
    for domain in DOMAINS:
        examples = read(DATA / f"{domain.name}.test.jsonl")
        answers = [answer(llama, example.prompt) for example in examples]
        wrong = [(e, given) for e, given in zip(examples, answers, strict=True) if given != e.response]
        first = f"  {wrong[0][0].prompt!r} -> {wrong[0][1]!r}" if wrong else ""
        print(
            f"{domain.name:12} {1 - len(wrong) / len(examples):.3f} of {len(examples):3}{first}", flush=True
        )


def answer(llama: Llama, prompt: str) -> str:
    """Return the greedy answer to one question."""
    completion: Any = llama.create_chat_completion(
        [{"role": "user", "content": prompt}], temperature=0.0, max_tokens=ANSWER_TOKENS_MAX
    )
    return str(completion["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main()

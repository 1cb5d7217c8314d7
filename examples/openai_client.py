"""The stock OpenAI client against a gateway of Agora: list the models, stream one answer, say what it came to.

    pip install openai
    AGORA_API_KEY=agora_… python examples/openai_client.py "Why is the sky blue?"

AGORA_GATEWAY names another gateway than http://127.0.0.1:8420, AGORA_PRIVACY who may see the prompt (local, owner, mesh),
AGORA_MODEL another model than the first.
"""

import os
import sys

from openai import OpenAI


def main() -> None:
    """Ask the question of the command line."""
    question = " ".join(sys.argv[1:]) or "Tell me the story of the lighthouse."
    gateway = os.environ.get("AGORA_GATEWAY", "http://127.0.0.1:8420")
    client = OpenAI(base_url=f"{gateway}/v1", api_key=os.environ["AGORA_API_KEY"])
    model = os.environ.get("AGORA_MODEL") or next(iter(client.models.list())).id

    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"X-Agora-Privacy": os.environ.get("AGORA_PRIVACY", "owner")},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage:
            print(f"\n\n{model}: {chunk.usage.prompt_tokens}+{chunk.usage.completion_tokens} tokens")


if __name__ == "__main__":
    main()

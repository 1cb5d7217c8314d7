"""What a program asks of a model, with the stock OpenAI client: JSON of a schema, how sure the model was, vectors.

    pip install openai
    AGORA_API_KEY=agora_… python examples/structured_output.py "My heat pump shows E4."

AGORA_GATEWAY, AGORA_PRIVACY and AGORA_MODEL as in openai_client.py; AGORA_EMBEDDER names a model that embeds, if there is one.
"""

import json
import math
import os
import sys

from openai import OpenAI

SCHEMA = {
    "type": "object",
    "properties": {
        "topic": {"enum": ["appliance", "billing", "delivery", "other"]},
        "is_urgent": {"type": "boolean"},
        "code": {"type": "string", "maxLength": 8},
    },
    "required": ["topic", "is_urgent", "code"],
    "additionalProperties": False,
}


def main() -> None:
    """Sort the message of the command line."""
    message = " ".join(sys.argv[1:]) or "My heat pump shows E4."
    gateway = os.environ.get("AGORA_GATEWAY", "http://127.0.0.1:8420")
    client = OpenAI(
        base_url=f"{gateway}/v1",
        api_key=os.environ["AGORA_API_KEY"],
        default_headers={"X-Agora-Privacy": os.environ.get("AGORA_PRIVACY", "owner")},
    )
    model = os.environ.get("AGORA_MODEL", "auto")

    # the answer is held to the schema token by token, whatever the model would rather say
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"Sort this message: {message}"}],
        response_format={"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA}},
        logprobs=True,
    )
    choice = answer.choices[0]
    print("ticket:", json.loads(choice.message.content or ""))
    tokens = choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    doubted = min(tokens, key=lambda token: token.logprob)
    print(f"least sure of {doubted.token!r}: {math.exp(doubted.logprob):.0%}")

    # a raw text to go on from, without the model's chat template
    completion = client.completions.create(model=model, prompt=message, max_tokens=8, logprobs=1)
    print("goes on:", repr(completion.choices[0].text))

    if embedder := os.environ.get("AGORA_EMBEDDER"):
        found = client.embeddings.create(model=embedder, input=[message, "The heating is out of order."])
        one, other = (each.embedding for each in found.data)
        # unit vectors: their product is the cosine
        print(f"likeness: {sum(a * b for a, b in zip(one, other, strict=True)):.2f}")


if __name__ == "__main__":
    main()

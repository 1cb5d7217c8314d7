"""Contrasts: what a seller says of each token, so that a check sees another computation at every one. Only for the child.

The contrast of a token is its logit less that of a *probe*, another token of the vocabulary that follows from the place and
the token by a hash. It takes two numbers of the row that was computed anyway, and no pass over the vocabulary. Raw logits,
whatever penalties, biases, chance or a constraint then made of them: so it can be compared for answers of every kind.

The probe changes with every place and token, so nothing that was computed for another text helps: whoever has computed the
model here states the same but for rounding, and nobody else does. The idea is TOPLOC's (Ong et al. 2025, arXiv:2501.16007),
which commits to activations.
"""

import hashlib
from typing import Any

from protocol.limits import CONTRAST_MILLI_MAX


def probe(position: int, token: int, vocabulary_size: int) -> int:
    """Return the token that a token is compared with.

    Args:
        position: of the token, in the prompt and the completion as one list.
        token: its id.
        vocabulary_size: of the model.
    """
    digest = hashlib.blake2b(f"{position}/{token}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % vocabulary_size


def contrast(row: Any, vocabulary_size: int, position: int, token: int) -> int:
    """Return how far a token's logit is above its probe's, in thousandths.

    Args:
        row: address of the finite logits behind the token before it; not modified.
        vocabulary_size: how many those are.
        position: of the token, in the prompt and the completion as one list.
        token: its id.
    """
    apart = float(row[token]) - float(row[probe(position, token, vocabulary_size)])
    return min(CONTRAST_MILLI_MAX, max(-CONTRAST_MILLI_MAX, round(apart * 1_000)))

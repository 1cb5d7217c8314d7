"""A Llama in plain torch, with 0.93 million parameters.

The modules carry the names that GGUF gives to their tensors, and the rotary embedding turns neighbouring pairs, as
Meta's Llama and llama.cpp do. So `export.py` writes the tensors as they are. (Hugging Face's Llama turns the first half
against the second; who converts between the two has to permute the rows of q and k.)

Source: Touvron et al. 2023, arXiv:2302.13971; grouped-query attention: Ainslie et al. 2023, arXiv:2305.13245.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN: Final = 128
LAYERS: Final = 4
HEADS: Final = 4
KV_HEADS: Final = 2
HEAD_SIZE: Final = HIDDEN // HEADS
FEED_FORWARD: Final = 384
CONTEXT: Final = 2048
ROPE_BASE: Final = 10_000.0
NORM_EPSILON: Final = 1e-5


class Block(nn.Module):
    """Attention, then a gated feed-forward layer, each added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(HIDDEN, NORM_EPSILON)
        self.attn_q = nn.Linear(HIDDEN, HEADS * HEAD_SIZE, bias=False)
        self.attn_k = nn.Linear(HIDDEN, KV_HEADS * HEAD_SIZE, bias=False)
        self.attn_v = nn.Linear(HIDDEN, KV_HEADS * HEAD_SIZE, bias=False)
        self.attn_output = nn.Linear(HEADS * HEAD_SIZE, HIDDEN, bias=False)
        self.ffn_norm = nn.RMSNorm(HIDDEN, NORM_EPSILON)
        self.ffn_gate = nn.Linear(HIDDEN, FEED_FORWARD, bias=False)
        self.ffn_up = nn.Linear(HIDDEN, FEED_FORWARD, bias=False)
        self.ffn_down = nn.Linear(FEED_FORWARD, HIDDEN, bias=False)

    def forward(self, x: Tensor, mask: Tensor, rotation: Tensor) -> Tensor:
        """Return x, (batch, seq, hidden), with what this block adds to it."""
        batch, seq, _ = x.shape
        h = self.attn_norm(x)  # (batch, seq, hidden)
        q = self.attn_q(h).view(batch, seq, HEADS, HEAD_SIZE).transpose(1, 2)  # (batch, heads, seq, head)
        k = (
            self.attn_k(h).view(batch, seq, KV_HEADS, HEAD_SIZE).transpose(1, 2)
        )  # (batch, kv heads, seq, head)
        v = (
            self.attn_v(h).view(batch, seq, KV_HEADS, HEAD_SIZE).transpose(1, 2)
        )  # (batch, kv heads, seq, head)
        a = functional.scaled_dot_product_attention(
            rotate(q, rotation), rotate(k, rotation), v, attn_mask=mask, enable_gqa=True
        )  # (batch, heads, seq, head)
        x = x + self.attn_output(
            a.transpose(1, 2).reshape(batch, seq, HEADS * HEAD_SIZE)
        )  # (batch, seq, hidden)
        h = self.ffn_norm(x)
        gated = functional.silu(self.ffn_gate(h)) * self.ffn_up(h)  # (batch, seq, feed forward)
        out: Tensor = x + self.ffn_down(gated)  # (batch, seq, hidden)
        return out


class TinyLlama(nn.Module):
    """The whole model; its input and output embeddings are two matrices."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(vocabulary_size, HIDDEN)
        self.blk = nn.ModuleList(Block() for _ in range(LAYERS))
        self.output_norm = nn.RMSNorm(HIDDEN, NORM_EPSILON)
        self.output = nn.Linear(HIDDEN, vocabulary_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # a matrix; the norms begin as ones
                is_added = name.endswith(("attn_output.weight", "ffn_down.weight"))
                # What is added to the stream 2 * LAYERS times begins smaller, as in GPT-2.
                nn.init.normal_(parameter, std=0.08 / (2 * LAYERS) ** 0.5 if is_added else 0.08)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the logits of each next token.

        Args:
            tokens: (batch, seq), ids.
            mask: (batch, 1, seq, seq), true where the row's position may attend to the column's.
        """
        x: Tensor = self.token_embd(tokens)  # (batch, seq, hidden)
        rotation = rotations(tokens.shape[1])  # (seq, head / 2), complex
        for block in self.blk:
            x = block(x, mask, rotation)
        logits: Tensor = self.output(self.output_norm(x))  # (batch, seq, vocabulary)
        return logits


def rotations(seq: int) -> Tensor:
    """Return exp(i * position * frequency), (seq, head / 2), complex."""
    frequency = ROPE_BASE ** (-torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)  # (head / 2,)
    angle = torch.outer(torch.arange(seq), frequency)  # (seq, head / 2)
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each neighbouring pair of x, (batch, heads, seq, head), by its position's angle."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))  # (batch, heads, seq, head / 2)
    return torch.view_as_real(pairs * rotation).flatten(-2)  # (batch, heads, seq, head)

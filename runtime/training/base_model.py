"""The base model: the GGUF that llama.cpp serves, read back by transformers, so that there is one file for both.

What transformers does not take out of a GGUF (end of turn, whether a begin-of-text is put in front, the chat template)
comes from its metadata, and the template is rendered by the same code that renders it for inference: a model that is
trained on other prompts than it is asked learns something else. Only for the child; nothing here is imported by the
daemon.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from runtime.llama.template import CHATML, ChatTemplate, RenderBounds

# What GGUF calls a linear layer of a block, and where Hugging Face's Llama and its kin (Qwen, Mistral) keep it.
LINEARS: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


Device = torch.device


def find_device() -> Device:
    """Return where torch computes: a GPU where it sees one. Call before the sandbox closes: devices are out of sight then."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.zeros(1, device="cuda")  # opens the device and what it needs of the driver
    return torch.device("cuda")


class BadBase(Exception):
    """The file is no model that can be trained here; the message is one line for the user."""


@dataclass(frozen=True)
class Sample:
    """One example as tokens: what is read, and from where on it is learned.

    Attributes:
        tokens: the rendered prompt, the answer, the end of the turn.
        prompt_tokens: how many of them are the prompt's.
    """

    tokens: list[int]
    prompt_tokens: int


class BaseModel:
    """Frozen weights in float32, tokenizer and chat template.

    Args:
        path: a GGUF file whose digest has been checked.
        bounds: what the template gets; made before the sandbox closes.
        device: where torch computes.

    Attributes:
        model: transformers' causal language model, without gradients.
        shapes: of each linear layer that can be adapted, by its GGUF name ("blk.0.attn_q"): (out, in).

    Raises:
        BadBase: transformers cannot read it.
        TemplateError: its chat template does not compile.
    """

    def __init__(self, path: Path, bounds: RenderBounds, device: Device) -> None:
        metadata = gguf.GGUFReader(path)
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
            )
            self._tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        except (ValueError, KeyError, TypeError, NotImplementedError, OSError, RuntimeError) as error:
            line = " ".join(str(error).split())[:256]
            raise BadBase(f"transformers cannot read this model: {line}") from error
        self.model: Any = model.to(device)
        self.model.requires_grad_(requires_grad=False)
        # Opacus captures activations in training mode only; models with dropout would want it off all the same.
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

        def of(key: str) -> Any:
            field = metadata.get_field(f"tokenizer.{key}")
            return None if field is None else field.contents()

        bos, eos = of("ggml.bos_token_id"), of("ggml.eos_token_id")
        if eos is None:
            raise BadBase("the model names no end-of-text token: no answer of it would end")
        self._end = int(eos if (eot := of("ggml.eot_token_id")) is None else eot)
        # llama.cpp puts one in front where the file says nothing and the vocabulary is SentencePiece.
        adds_bos = of("ggml.add_bos_token")
        self._adds_bos = of("ggml.model") == "llama" if adds_bos is None else bool(adds_bos)
        self._bos = None if bos is None else int(bos)
        self._bos_text = "" if bos is None else self._text(int(bos))
        self._template = ChatTemplate(
            of("chat_template") or CHATML, self._bos_text, self._text(int(eos)), bounds
        )
        self.layers: Any = self.model.model.layers
        self.shapes = {
            f"blk.{number}.{name}": (linear.out_features, linear.in_features)
            for number, layer in enumerate(self.layers)
            for name, where in LINEARS.items()
            if isinstance(linear := _at(layer, where), nn.Linear)
        }

    def sample(self, prompt: str, response: str, tokens_max: int) -> Sample | None:
        """Return an example as the model will meet it when it is asked; None if its prompt alone is too long.

        Args:
            prompt: what a user says.
            response: what is to be learned.
            tokens_max: a longer answer is cut, and then it has no end to learn.

        Raises:
            TemplateError: the chat template failed or refused it.
        """
        rendered = self._template.render((("user", prompt),))
        tokens = self._tokens(rendered)
        if self._adds_bos and self._bos is not None and not rendered.startswith(self._bos_text):
            tokens = [self._bos, *tokens]
        if len(tokens) >= tokens_max:
            return None
        return Sample([*tokens, *self._tokens(response), self._end][:tokens_max], len(tokens))

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, token: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token) or "")


def _at(layer: nn.Module, where: str) -> nn.Module | None:
    try:
        return layer.get_submodule(where)
    except AttributeError:
        return None

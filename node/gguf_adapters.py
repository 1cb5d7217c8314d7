"""Adapters of the GGUF models of this device: their shapes out of a base's header, their files out of a run's state.

Called in a worker thread; numpy is imported by the first call, so a daemon that coordinates nothing does without it.
"""

from pathlib import Path
from typing import Protocol

from protocol.errors import AgoraError
from protocol.messages import Recipe
from runtime.engine import Digest
from runtime.gguf_header import BadModelFile, Layout, read_layout

SUFFIX = ".weight"


class ModelFiles(Protocol):
    """What is needed of `runtime.model_store.ModelStore`."""

    def path(self, digest: Digest) -> Path:
        """Return where a model's file is, or would be."""


class GgufAdapters:
    """See `node.adapter_maker.AdapterMaker`.

    Args:
        models: the bases of this device.
    """

    def __init__(self, models: ModelFiles) -> None:
        self._models = models

    def shapes(self, base: Digest, recipe: Recipe) -> dict[str, tuple[int, int]]:
        """See `AdapterMaker.shapes`."""
        from federation.lora import adapted  # noqa: PLC0415  # numpy

        return adapted(recipe, _tensors(self._layout(base)))

    def export(self, state: bytes, recipe: Recipe, base: Digest) -> bytes:
        """See `AdapterMaker.export`."""
        from federation.codec import state_from  # noqa: PLC0415  # numpy
        from federation.lora import both_halves  # noqa: PLC0415
        from runtime.adapter_file import write  # noqa: PLC0415

        layout = self._layout(base)
        matrices = both_halves(state_from(state), recipe, _tensors(layout))
        return write(matrices, recipe.shape, layout)

    def _layout(self, base: Digest) -> Layout:
        try:
            return read_layout(self._models.path(base))
        except FileNotFoundError as error:
            raise UnusableBase(
                f"no model {base.hex()[:8]} here, expected the line's base; add it with 'agora model add'"
            ) from error
        except BadModelFile as error:
            raise UnusableBase(f"model {base.hex()[:8]} cannot be read: {error}") from error


class UnusableBase(AgoraError):
    """The base is not here, or its file is none."""


def _tensors(layout: Layout) -> dict[str, tuple[int, int]]:
    return {
        name.removesuffix(SUFFIX): shape
        for name, shape in layout.shapes.items()
        if name.startswith("blk.") and name.endswith(SUFFIX)
    }

"""The weights of a base on a device, once for the scorers of all checkpoints that stand on it.

An adapter changes some matrices of its base. It gets them as tensors of its own (`adapters.beside`), made from the
base's by the same steps as where it is loaded alone; all others are the base's tensors themselves. So nothing is ever
subtracted again, and scores are to the bit those of a process that loads base and adapter.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch

from evaluators.audio_lm.decoder import Decoder
from evaluators.audio_lm.prefixes import Embeddings
from evaluators.errors import PauseError


class SharedBase:
    """A base, from the first load until the last of its users lets go of it.

    A scorer that shares with nobody loads its checkpoint by itself, which takes less memory.

    Attributes:
        users: Scorers that need it, or may need it yet.
        embeddings: What the base's audio tower made of clips, for all users whose adapter leaves the tower as it is.
    """

    def __init__(self) -> None:
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self.embeddings = Embeddings()
        self._model: Any = None
        self._digest = ""  # of the files that the model is of

    @property
    def is_shared(self) -> bool:
        """Whether the base is there by itself, or several need it."""
        return self._model is not None or len(self.users) > 1

    def join(self, user: object) -> None:
        """A scorer may need it from here on."""
        self.users.add(user)

    def leave(self, user: object) -> None:
        """A scorer lets go of it; with the last one its memory is free."""
        self.users.discard(user)
        if not self.users:
            self.forget()

    def forget(self) -> None:
        """Drops the base and its embeddings; who needs them reads the files again."""
        self._model = None
        self.embeddings.clear()

    def model(self, digest: str, load: Callable[[], Any]) -> Any:
        """The base, which must stay as it is.

        Args:
            digest: Of the base's files as they are now.
            load: Reads them.

        Raises:
            PauseError: They are not those that were read.
        """
        if self._model is None:
            self._model, self._digest = load(), digest
            Decoder(self._model)  # lays weights side by side, once for all users
        if digest != self._digest:
            raise PauseError(
                "the files of the base model were changed while they were in use; when they are as they shall be, give"
                " the same command again"
            )
        return self._model

    def make_room(self, user: object, needed: float, device: torch.device) -> None:
        """Takes from the other users what is their own, where a card has fewer bytes to spare than are needed.

        They make it again when they score.
        """
        if device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if free + unused >= needed:
            return
        for other in list(self.users):
            if other is not user:
                other.unload()
        torch.cuda.empty_cache()

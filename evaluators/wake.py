"""Starts a card's driver while torch is imported: importing takes seconds, and the driver another half."""

import ctypes
import re
import threading


def wake_card(device: str) -> None:
    """Begins to start the card that a ``--device`` means, in a thread; torch joins what it started.

    Whatever is wrong with a card, or with there being none, torch says when it is asked for it.

    Args:
        device: ``auto``, ``cuda`` or ``cuda:1``; for others nothing happens.
    """
    named = re.fullmatch(r"auto|cuda(?::(\d+))?", device)
    if named is not None:
        threading.Thread(target=_wake, args=(int(named[1] or 0),), daemon=True).start()


def _wake(card: int) -> None:
    """Makes the primary context of a card, which the runtime library takes as well (CUDA driver API)."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(handle), card) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle)

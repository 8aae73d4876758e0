"""Memory of this process (Linux), and of its GPU."""

import threading
import time
from pathlib import Path

import torch


def anonymous_bytes() -> int:
    """Returns the resident memory of this process that is not a mapped file, in bytes."""
    return _status("RssAnon")


def resident_bytes() -> int:
    """Returns the resident memory of this process, mapped files included, in bytes."""
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}; this benchmark needs Linux")


class Peak:
    """The most anonymous memory of the process from now on, sampled every 2 ms; of a GPU, what torch counts itself."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        if device != "cpu":
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(device)
        self.before = self._most = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.is_set():
            self._most = max(self._most, anonymous_bytes())
            time.sleep(0.002)

    def stop(self) -> dict[str, int]:
        """Ends the sampling; returns bytes by name."""
        self._done.set()
        self._thread.join()
        peaks = {"before loading": self.before, "peak anonymous": self._most}
        if self._device != "cpu":
            peaks["peak allocated on the GPU"] = torch.cuda.max_memory_allocated(self._device)
            peaks["peak reserved on the GPU"] = torch.cuda.max_memory_reserved(self._device)
        return peaks

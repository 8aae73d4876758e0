"""Energy, where the hardware counts it: RAPL for a processor, NVML for an NVIDIA GPU."""

from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Counts joules from now on."""

    def __init__(self, device: str = "cpu", powercap: Path = POWERCAP) -> None:
        self._device, self._powercap = device, powercap
        self._start = self._counters()

    def joules(self) -> float | None:
        """Returns the joules since the start; None where nothing counts them, or nobody may read it."""
        now = self._counters()
        if not self._start or now.keys() != self._start.keys():
            return None
        total = 0.0
        for name, (count, most) in now.items():
            since = count - self._start[name][0]
            total += since if since >= 0 else since + most  # a counter of RAPL starts again at 0
        return total

    def _counters(self) -> dict[str, tuple[float, float]]:
        """Joules, and where they wrap, by the name of the counter."""
        return _rapl(self._powercap) if self._device == "cpu" else _nvml(self._device)


def _rapl(powercap: Path) -> dict[str, tuple[float, float]]:
    """The packages; their parts, two colons deep, are in them."""
    counters = {}
    for package in powercap.glob("*rapl:*"):
        if package.name.count(":") != 1:
            continue
        try:
            numbers = [int((package / file).read_text()) / 1e6 for file in ("energy_uj", "max_energy_range_uj")]
        except (OSError, ValueError):  # for root only, since energy tells what a processor computes
            continue
        counters[package.name] = (numbers[0], numbers[1])
    return counters


def _nvml(device: str) -> dict[str, tuple[float, float]]:
    try:
        import pynvml

        pynvml.nvmlInit()
        properties = torch.cuda.get_device_properties(device)  # its index here need not be NVML's
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        return {device: (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, float("inf"))}
    except Exception:  # no package, no driver, or a card before Volta
        return {}

"""GPUs, and what of their memory a model can have."""

from dataclasses import dataclass

MIB = 1 << 20
# Of every GPU: the context that a process opens, with its kernels and the workspace of cuBLAS (about 0.5 GiB), and
# what the driver keeps for itself (0.2 to 0.4 GiB: the memory that PyTorch sees is that much less than the driver's).
RESERVED = 768 * MIB


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: As it is sold.
        gigabytes: As it is sold.
        memory: Bytes that the driver reports.
        architecture: Compute capability (80 for 8.0) or AMD's name, by which kernels and their workspace are chosen.
    """

    name: str
    gigabytes: int
    memory: int
    architecture: int | str

    @property
    def usable(self) -> int:
        """Bytes for a model and what it computes."""
        return self.memory - RESERVED


# A known one for each size, with the MiB that `nvidia-smi` and `rocm-smi` show. They are not what is sold: ECC takes a
# sixteenth of GDDR6, and an H100 has 79.6 GiB of the 80.
CARDS = tuple(
    Card(name, gigabytes, mib * MIB, architecture)
    for name, gigabytes, mib, architecture in (
        ("RTX 4060", 8, 8188, 89),
        ("RTX 3080", 10, 10240, 86),
        ("RTX 3060", 12, 12288, 86),
        ("RTX 4080", 16, 16376, 89),
        ("RTX 4090", 24, 24564, 89),
        ("RTX 5090", 32, 32607, 120),
        ("A100 40 GB", 40, 40960, 80),
        ("L40S", 48, 46068, 89),
        ("MI210", 64, 65520, "gfx90a"),
        ("H100", 80, 81559, 90),
        ("RTX PRO 6000", 96, 97887, 120),
        ("H200", 141, 143771, 90),
        ("B200", 180, 183359, 100),
        ("MI300X", 192, 196592, "gfx942"),
    )
)

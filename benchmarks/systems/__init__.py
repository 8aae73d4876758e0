"""The systems that are compared, an adapter file each.

An adapter names what it is and what it needs installed without importing any of it; `load(checkpoint, device)` runs in
a process of the system's own environment. A system that does not read the 16-bit checkpoint has
`checkpoint_of(checkpoint)`, which makes what it reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class System:
    """What the harness must know of a system before it starts it.

    Attributes:
        name: In tables, and on the command line.
        package: Whose version is recorded.
        requirements: What pip installs into its environment; none if the environment of the benchmark has it.
        kind: "ours", or the bits of the weights: "32 bit", "16 bit" or "8 bit".
        without: Dependencies of those that are taken out again.
        build: Variables of the environment for what has to be compiled.
    """

    name: str
    package: str
    requirements: tuple[str, ...] = ()
    kind: str = "8 bit"
    without: tuple[str, ...] = ()
    build: Mapping[str, str] = field(default_factory=dict)


# Adapter files of the main table, in its order.
ADAPTERS = (
    "transformers_fp32",  # what the distributions of the others are compared with
    "llmint8",
    "llmint8_head",
    "transformers_bf16",
    "bitsandbytes",
    "torchao_weight_only",
    "torchao_dynamic",
    "optimum_quanto",
    "llama_cpp",
    "vllm_cpu",
)
# Those that other tables have.
MORE_ADAPTERS = ("llmint8_saved",)

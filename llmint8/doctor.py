"""What int8 layers will run on here, and why; checked by running one."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from llmint8 import functional, ops
from llmint8.kernels import FORCED_BACKEND, backend, triton
from llmint8.kernels.cpu import build, native
from llmint8.outliers import OutlierRule
from llmint8.runtime.user_cache import cache_folder

PACKAGES = ("llmint8", "torch", "transformers", "accelerate", "safetensors", "huggingface_hub", "triton")
# Variables of the environment that change what runs, how fast, or where files are.
VARIABLES = (
    *("LLMINT8_BACKEND", "LLMINT8_CACHE", "LLMINT8_CPU_ISA", "LLMINT8_NATIVE", "CXX", "XDG_CACHE_HOME"),
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "TRITON_INTERPRET", "TRITON_CACHE_DIR"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
)
_FOR_DEVELOPERS = ("test", "lint")
_TOKEN, _PROMPT = 1, 64  # rows; those of a prompt are quantized, or come on top of those that are not
_FEATURES = 256
_RULE = OutlierRule("threshold", threshold=6.0)


@dataclass(frozen=True)
class Check:
    """An int8 layer that was run beside `llmint8.functional`.

    Attributes:
        error: Norm of the difference over the norm of the result, the largest one of a token's and of prompts'.
        passed: Whether that is what rounding explains.
    """

    error: float
    passed: bool


@dataclass(frozen=True)
class Processor:
    """The CPU.

    Attributes:
        name: Name of the model.
        cores: Physical ones.
        threads: That torch uses.
        kernels: The instruction set that the native kernels run with, or `"PyTorch"`.
        instruction_sets: Those that this processor has native kernels for, best first.
        library: File of the native kernels; None if they are not there.
        compiler: Path of the C++ compiler; None if there is none.
        reason: Why the kernels are those.
        fast: Whether they are the fast ones.
        check: A layer that was run.
    """

    name: str
    cores: int
    threads: int
    kernels: str
    instruction_sets: tuple[str, ...]
    library: str | None
    compiler: str | None
    reason: str
    fast: bool
    check: Check


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees.

    Attributes:
        name: Name of the model.
        capability: Compute capability, or AMD's name of the architecture.
        bytes: Bytes of its memory.
        free: Bytes of it that are free now.
        kernels: `"Triton"` or `"PyTorch"`, and for what.
        reason: Why the kernels are those.
        fast: Whether they are the fast ones.
        check: A layer that was run.
    """

    name: str
    capability: str
    bytes: int
    free: int
    kernels: str
    reason: str
    fast: bool
    check: Check


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` has found.

    Attributes:
        versions: Versions of Python and of packages; None for what is not installed.
        system: Operating system and architecture.
        cpu: The processor.
        gpus: Those that torch sees.
        device: Where a model goes with `device_map="auto"`.
        fast: Whether int8 layers run on fast kernels there, and compute what they should.
        memory: Bytes of main memory.
        free_memory: Bytes of it that are available.
        cache: Folder for what is made once per user.
        free_cache: Bytes that are free there; None if nothing can be written.
        variables: Variables of the environment that are set.
        extras: Optional extra -> packages of it that are missing.
        advice: What to do, if anything.
    """

    versions: dict[str, str | None]
    system: str
    cpu: Processor
    gpus: tuple[Gpu, ...]
    device: str
    fast: bool
    memory: int
    free_memory: int
    cache: str
    free_cache: int | None
    variables: dict[str, str]
    extras: dict[str, list[str]]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Returns everything as JSON values."""
        return dataclasses.asdict(self)


def diagnose() -> Diagnosis:
    """Finds out what int8 layers run on; the native kernels are compiled if they have not been yet.

    Raises:
        ValueError: `LLMINT8_CPU_ISA` names none of this processor's instruction sets.
    """
    cpu = _processor()
    gpus = tuple(_gpu(index) for index in range(torch.cuda.device_count())) if torch.cuda.is_available() else ()
    used: tuple[Processor | Gpu, ...] = gpus or (cpu,)
    memory = psutil.virtual_memory()
    cache = cache_folder()
    return Diagnosis(
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        system=f"{platform.system()} {platform.release()}, {build.architecture()}",
        cpu=cpu,
        gpus=gpus,
        device="GPU" if gpus else "CPU",
        fast=all(device.fast and device.check.passed for device in used),
        memory=memory.total,
        free_memory=memory.available,
        cache=str(cache),
        free_cache=_free(cache),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        extras=_extras(),
        advice=tuple(_advice(cpu, gpus)),
    )


def _processor() -> Processor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is asked for below
        loaded = native.load()
    sets = tuple(native.instruction_sets()) if loaded else ()
    try:
        compiler = build.find_compiler()
    except build.BuildError:
        compiler = None
    kernels = (os.environ.get("LLMINT8_CPU_ISA") or sets[0]) if sets else "PyTorch"
    if (why_not := native.why_not()) is not None:
        reason = why_not
    elif os.environ.get("LLMINT8_CPU_ISA"):
        reason = f"LLMINT8_CPU_ISA={kernels}"
    elif kernels == "portable":
        reason = "this processor has no vector instructions that there are kernels for"
    else:
        reason = "the best that this processor has"
    path = native.library_path()
    return Processor(
        name=_processor_name(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        kernels=kernels,
        instruction_sets=sets,
        library=str(path) if loaded else None,
        compiler=compiler,
        reason=reason,
        fast=loaded and kernels != "portable",
        check=_check(torch.device("cpu")),
    )


def _gpu(index: int) -> Gpu:
    device = torch.device("cuda", index)
    found = torch.cuda.get_device_properties(index)
    capability = found.gcnArchName.split(":")[0] if torch.version.hip else f"{found.major}.{found.minor}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is asked for below
        takes = backend.backend_of(device) is backend.TRITON
    kernels = _triton_kernels(device) if takes else "PyTorch"
    if takes:
        reason = "Triton works"
    elif FORCED_BACKEND == "reference":
        reason = "LLMINT8_BACKEND=reference leaves Triton out"
    else:
        reason = triton.why_not_on(index) or "Triton does not work"
    free, total = torch.cuda.mem_get_info(index)
    return Gpu(found.name, capability, total, free, kernels, reason, takes, _check(device))


def _triton_kernels(device: torch.device) -> str:
    """Which kernels 16-bit inputs get on a GPU."""
    from llmint8.kernels.triton import tiles
    from llmint8.kernels.triton.choice import choose_product

    tables = tiles.tables(device)
    x = torch.empty(tables.decode_rows + _PROMPT, _FEATURES, device=device, dtype=torch.float16)
    prompt = {
        "dequantized_linear": "PyTorch with dequantized weights",
        "int_mm_linear": "int8 x int8 by torch._int_mm",
        "mixed_linear": "int8 x int8",
    }
    weight = torch.empty(_FEATURES, _FEATURES, device=device, dtype=torch.int8)
    return f"Triton, up to {tables.decode_rows} rows weights only, above {prompt[choose_product(x, weight, tables)]}"


def _check(device: torch.device) -> Check:
    """Runs an int8 layer on a device and in `functional`, with the same outlier columns."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    codes, scale = functional.quantize_rowwise(torch.randn(_FEATURES, _FEATURES, generator=generator))
    for rows, dtype in _inputs(device):
        x = torch.randn(rows, _FEATURES, generator=generator)
        x[:, 3] *= 50
        x = x.to(dtype)
        inputs = (x.to(device), codes.to(device), scale.to(device))
        if _is_quantized(*inputs[:2]):
            outliers = functional.select_outliers(x, None, _RULE)
            expected = functional.mixed_linear(x.float(), codes, scale, outliers=outliers, symmetric=False)
        else:
            expected = functional.weight_only_linear(x.float(), codes, scale)
        got = ops.int8_linear(*inputs, rule=_RULE)
        worst = max(worst, ((got.cpu().float() - expected).norm() / expected.norm()).item())
    # A value between two codes may be rounded the other way by another order of operations. A share f of such codes
    # makes an error of sqrt(f) / 40, since a code is about 40 steps: this allows one in 600, and no wrong kernel. In
    # fp16, the weight and the result are each off by a share of at most 2^-11, which is half of that.
    return Check(worst, worst < 1e-3)


def _inputs(device: torch.device) -> tuple[tuple[int, torch.dtype], ...]:
    """Number of rows and dtype of inputs, which between them meet each kernel that a device uses."""
    if backend.backend_of(device) is not backend.TRITON:
        return (_TOKEN, torch.float32), (_PROMPT, torch.float32)
    from llmint8.kernels.triton import tiles

    prompt = tiles.tables(device).decode_rows + _PROMPT
    return tuple((rows, dtype) for rows in (_TOKEN, _PROMPT // 8, prompt) for dtype in (torch.float32, torch.float16))


def _is_quantized(x: Tensor, weight: Tensor) -> bool:
    """Whether an input is, on its device."""
    if backend.backend_of(x.device) is not backend.TRITON:
        return x.shape[0] > backend.decode_rows(x.device)
    from llmint8.kernels.triton import tiles
    from llmint8.kernels.triton.choice import choose_product

    return choose_product(x, weight, tiles.tables(x.device)) in ("int_mm_linear", "mixed_linear")


def _advice(cpu: Processor, gpus: tuple[Gpu, ...]) -> list[str]:
    variables = [name for name in ("LLMINT8_NATIVE", "LLMINT8_BACKEND", "LLMINT8_CPU_ISA") if name in os.environ]
    advice = [
        f"{device.name} computes wrong results; LLMINT8_BACKEND=reference LLMINT8_NATIVE=0 runs without its kernels"
        for device in gpus or (cpu,)
        if not device.check.passed
    ]
    for gpu in gpus:
        if not gpu.fast and not variables:
            compiler = "" if cpu.compiler else " and a C compiler"
            advice.append(f"for fast kernels on the {gpu.name} install Triton (pip install triton){compiler}")
    if not gpus and not cpu.fast:
        if variables:
            advice.append(f"unset {' and '.join(variables)} for the native kernels")
        elif cpu.compiler is None:
            advice.append("install a C++ compiler (apt install g++, dnf install gcc-c++, xcode-select --install)")
        elif cpu.kernels == "portable":
            advice.append("on a processor with AVX2, AVX-VNNI, AVX-512 VNNI or the ARM dot product int8 is faster")
        else:
            advice.append(f"see why the kernels do not compile or load: {cpu.reason}")
    return advice


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        lines = ""
    found = re.search(r"^model name\s*:\s*(.+)$", lines, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> dict[str, list[str]]:
    """The optional extras of this package, and what each lacks here."""
    from packaging.requirements import Requirement

    extras: dict[str, list[str]] = {}
    try:
        metadata = importlib.metadata.metadata("llmint8")
    except importlib.metadata.PackageNotFoundError:  # run from a folder that is not installed
        return {}
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist") or ()]
    for extra in metadata.get_all("Provides-Extra") or ():
        if extra in _FOR_DEVELOPERS:
            continue
        extras[extra] = [
            str(r.name)
            for r in requirements
            if r.marker is not None
            and not r.marker.evaluate({"extra": ""})
            and r.marker.evaluate({"extra": extra})
            and not r.specifier.contains(_version(r.name) or "0", prereleases=True)
        ]
    return extras


def _free(folder: Path) -> int | None:
    """Bytes that are free where a folder is or would be; None if it cannot be written."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free if os.access(existing, os.W_OK | os.X_OK) else None

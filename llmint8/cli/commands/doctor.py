"""`llmint8 doctor`: what int8 layers will run on here, and why."""

import json
from typing import TYPE_CHECKING

import typer

from llmint8.cli.settings import JsonOption

if TYPE_CHECKING:
    from llmint8.doctor import Diagnosis, Gpu, Processor


def command(as_json: JsonOption = False) -> None:
    """Say what backend int8 layers will run on here, and why. The exit status is 1 if it is a slow one."""
    from llmint8.doctor import diagnose

    found = diagnose()
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _show(found)
    raise typer.Exit(0 if found.fast else 1)


def _show(found: "Diagnosis") -> None:
    rows = [
        ("versions", [f"{name} {version or '-'}" for name, version in found.versions.items()]),
        ("system", [found.system]),
        ("memory", [f"{_gigabytes(found.free_memory)} free of {_gigabytes(found.memory)}"]),
        ("cpu", _processor(found.cpu)),
        *((f"gpu {i}", _gpu(gpu)) for i, gpu in enumerate(found.gpus)),
        ("cache", [found.cache, "read-only" if found.free_cache is None else f"{_gigabytes(found.free_cache)} free"]),
        ("environment", [f"{name}={value}" for name, value in found.variables.items()] or ["nothing set"]),
        ("extras", [f"{name}: {_extra(name, missing)}" for name, missing in found.extras.items()] or ["unknown"]),
    ]
    for label, lines in rows:
        for i, line in enumerate(lines):
            typer.echo(f"{'' if i else label:<12} {line}")
    speed = "fast" if found.fast else "slow"
    used = found.gpus or (found.cpu,)
    typer.echo(f"\nint8 layers run on the {found.device}: {', '.join(d.kernels for d in used)} ({speed})")
    for line in found.advice:
        typer.echo(f"- {line}")


def _processor(cpu: "Processor") -> list[str]:
    sets = ", ".join(cpu.instruction_sets)
    return [
        f"{cpu.name}, {cpu.cores} cores, {cpu.threads} threads",
        f"kernels: {cpu.kernels} ({cpu.reason})",
        *([f"there are kernels for: {sets}"] if sets else []),
        f"library: {cpu.library or 'none'}",
        f"compiler: {cpu.compiler or 'none'}",
        _check(cpu),
    ]


def _gpu(gpu: "Gpu") -> list[str]:
    return [
        f"{gpu.name}, {gpu.capability}, {_gigabytes(gpu.free)} free of {_gigabytes(gpu.bytes)}",
        f"kernels: {gpu.kernels} ({gpu.reason})",
        _check(gpu),
    ]


def _check(device: "Processor | Gpu") -> str:
    verdict = "right" if device.check.passed else "WRONG"
    return f"self-check: {verdict}, {device.check.error:.1e} from the reference"


def _extra(name: str, missing: list[str]) -> str:
    return f"pip install llmint8[{name}] ({', '.join(missing)} missing)" if missing else "installed"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"

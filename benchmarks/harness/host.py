"""What a figure was measured on."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch


def processor() -> str:
    """Returns the name of the processor and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor_name()}, {cores} cores"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """Returns the name of what computes: the processor or a GPU."""
    return processor() if device == "cpu" else torch.cuda.get_device_name(device)


def commit() -> str:
    """Returns the commit of this repository, with a + if files have changed since; "" outside of a repository."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
        # The file that figures are appended to does not change what is measured.
        files = [":/llmint8", ":/kernels", ":/benchmarks/*.py", ":/benchmarks/*/*.py", ":/pyproject.toml"]
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *files], cwd=folder, check=False)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.returncode else "")


def versions(*packages: str) -> str:
    """Returns packages with their versions, those that are installed."""
    found = []
    for package in dict.fromkeys(packages):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)

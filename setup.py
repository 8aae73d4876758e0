"""Compiles the native kernels into the package if asked: `LLMINT8_PREBUILD=1 pip wheel --no-build-isolation .`."""

import importlib.util
import os
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

PREBUILD = os.environ.get("LLMINT8_PREBUILD") == "1"


class BuildWithKernels(build_py):
    """Adds the library for the torch that is installed."""

    def run(self) -> None:
        """Copies the Python files, then compiles."""
        super().run()
        if PREBUILD and not self.editable_mode:
            spec = importlib.util.spec_from_file_location("build_kernels", Path("kernels/cpu/build.py").resolve())
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            folder = Path(self.build_lib).resolve() / "llmint8/kernels/cpu/prebuilt"
            module.build(folder / module.library_name(), print)


class MaybeBinaryDistribution(Distribution):
    """A wheel with the library is for one platform."""

    def has_ext_modules(self) -> bool:
        """Whether the wheel is for one platform."""
        return PREBUILD


setup(cmdclass={"build_py": BuildWithKernels}, distclass=MaybeBinaryDistribution)

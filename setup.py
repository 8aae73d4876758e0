"""Finds the packages, and compiles the native kernels into one of them if asked.

Every folder with an `__init__.py` below llmint8/ is a package, and so is every one below kernels/: `kernels/x` is
installed as `llmint8.kernels.x`, and nothing as a top-level `kernels`. To compile: `LLMINT8_PREBUILD=1 pip wheel
--no-build-isolation .`.
"""

import importlib.util
import os
from pathlib import Path

from setuptools import Distribution, find_packages, setup
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


KERNELS = {f"llmint8.kernels.{name}": f"kernels/{name.replace('.', '/')}" for name in find_packages("kernels")}

setup(
    packages=[*find_packages(include=["llmint8", "llmint8.*"]), *KERNELS],
    package_dir=KERNELS,
    cmdclass={"build_py": BuildWithKernels},
    distclass=MaybeBinaryDistribution,
)

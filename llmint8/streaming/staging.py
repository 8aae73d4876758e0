"""Where an int8 checkpoint grows: a hidden folder in that of the checkpoint, which an interrupted run leaves behind."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_NAME = ".llmint8-quantizing"
_PLAN = "plan.json"


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that a checkpoint should not be written to.

    Args:
        folder: May exist or not.
        overwrite: Whether what is in it may be replaced.

    Raises:
        FileExistsError: There is something in it other than an interrupted run.
        NotADirectoryError: It is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a checkpoint is written into a folder")
    if overwrite or not folder.exists() or not any(folder.iterdir()):
        return
    if (folder / "config.json").exists() or not (folder / _NAME).is_dir():
        raise FileExistsError(f"{folder} is not empty; overwrite replaces the checkpoint in it (--overwrite)")


@contextlib.contextmanager
def staging(folder: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """Gives a folder for the files of a checkpoint, with those that an interrupted run has finished.

    An error removes it, unless the checkpoint in it is complete, which is when it has its config.json: then moving has
    begun, and what it replaces may be gone. It stays, too, if the process is killed or stopped (Ctrl-C). The next run
    with the same plan goes on with it.

    Args:
        folder: Folder of the checkpoint.
        plan: What the files depend on, as JSON values: files of another plan are removed.

    Raises:
        RuntimeError: Another process is writing to it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    place = folder / _NAME
    place.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(place / "lock"):
            files = place / "files"
            if _read(place / _PLAN) != json.loads(json.dumps(plan)):
                shutil.rmtree(files, ignore_errors=True)
                _write(place / _PLAN, plan)
            files.mkdir(exist_ok=True)
            yield files
            shutil.rmtree(place)
    except BlockingIOError as error:
        raise RuntimeError(f"another process is quantizing into {folder}") from error
    except Exception:
        if not (place / "files" / "config.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            for path in made:
                with contextlib.suppress(OSError):  # somebody has put something there
                    path.rmdir()
        raise


def check_space(folder: Path, size: int) -> None:
    """Refuses to start what will not fit.

    Args:
        folder: To be written to.
        size: Bytes to be written.

    Raises:
        OSError: There is less room than that.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        message = f"No space left on device: {size / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free"
        raise OSError(errno.ENOSPC, message, str(folder))


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(file: Path, plan: Mapping[str, Any]) -> None:
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(plan, indent=2), encoding="utf-8")
    unfinished.replace(file)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds a lock that ends with the process; raises BlockingIOError if another one has it."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)

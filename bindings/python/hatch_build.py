"""Puts libsmolvlm.so into the wheel: the file that SMOLVLM_LIBRARY names, the checkout's, or one that cargo builds now."""

import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any, Dict

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "libsmolvlm.so"


def library(root: Path) -> Path:
    chosen = os.environ.get("SMOLVLM_LIBRARY")
    if chosen:
        if not Path(chosen).is_file():
            raise FileNotFoundError(f"SMOLVLM_LIBRARY: no file at {chosen}")
        return Path(chosen).resolve()
    built = root / "target" / "release" / NAME
    if not built.is_file():
        subprocess.run(["cargo", "build", "--release", "--locked", "--lib"], cwd=root, check=True)
    return built


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: Dict[str, Any]) -> None:
        if version == "editable":  # finds the checkout's by itself
            return
        # The library speaks C, not Python's own ABI: one wheel for all versions of Python on this platform.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["force_include"][str(library(Path(self.root).parents[1]))] = f"smolvlm/{NAME}"

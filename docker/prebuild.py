"""Build stage of the CUDA image: compile what Triton would compile with gcc at its first kernel.

Triton has one C source, the binding to libcuda, and caches the result under a hash of that source. The build puts the
result into that cache (TRITON_CACHE_DIR), so that a run finds it and needs no compiler. The build machine has no NVIDIA
driver, so the binding is linked against a stub with the driver's name and functions.
"""

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from triton.backends.nvidia import driver
from triton.runtime import build
from triton.runtime.cache import get_cache_manager

SOURCE = Path(driver.dirname, "driver.c").read_text()


def make_stub(folder: str) -> None:
    functions = sorted(set(re.findall(r"\bcu[A-Z]\w+", SOURCE)))
    code = "".join(f"int {name}(void) {{ return 0; }}\n" for name in functions)
    argv = ["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", f"{folder}/libcuda.so.1"]
    subprocess.run(argv, input=code, text=True, check=True)


def compile_binding(folder: str) -> None:
    c_file = Path(folder, "cuda_utils.c")
    c_file.write_text(SOURCE)
    libraries = [driver.libdevice_dir, folder]
    built = build._build("cuda_utils", str(c_file), folder, libraries, driver.include_dirs, driver.libraries, [])
    # Use the key and the name of triton.runtime.build.compile_module_from_src.
    key = hashlib.sha256((SOURCE + build.platform_key()).encode()).hexdigest()
    name = "cuda_utils" + sysconfig.get_config_var("EXT_SUFFIX")
    get_cache_manager(key).put(Path(built).read_bytes(), name, binary=True)


def load_without_compiler() -> None:
    """Fail unless Triton itself takes the binding from its cache.

    PATH must be that of a run: Triton's key holds platform.architecture(), which calls `file` if it is installed.
    """
    os.environ["CC"] = "/bin/false"
    build.compile_module_from_src(SOURCE, "cuda_utils")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        load_without_compiler()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            make_stub(scratch)
            compile_binding(scratch)
            check = [sys.executable, __file__, "--check"]
            subprocess.run(check, env={**os.environ, "LD_LIBRARY_PATH": scratch}, check=True)

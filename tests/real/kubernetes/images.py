"""Images made without a registry: `umoci` puts tars of files on top of each other."""

import atexit
import compileall
import fcntl
import functools
import hashlib
import py_compile
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.real.kubernetes.tools import base_system, run

PROJECT = Path(__file__).parents[3]
REGISTRY = "dsobs.test"
EXTRAS = ("kubernetes", "logs", "nvml")
"""Those of dsobs that its image has."""
_SITE = Path("usr/local/lib/python3.11/dist-packages")
_PATH = "PATH=/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Image:
    """`name` is what a manifest says, `archive` an OCI layout as a tar."""

    name: str
    archive: Path


def busybox_and_pause(folder: Path) -> tuple[Image, Image]:
    """Busybox with all of its commands; and tini, which holds a pod's namespaces and reaps its orphans."""
    root, layer = folder / "busybox", folder / "busybox-layer.tar"
    for name in ("bin", "etc", "tmp", "root", "proc", "sys", "dev", "var", "run"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    shutil.copy("/usr/bin/tini-static", root / "bin/tini")
    for command in set(run(str(root / "bin/busybox"), "--list").split()) - {"busybox"}:
        (root / "bin" / command).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    _tar(root, layer)
    words = ("/bin/tini", "--", "/bin/sleep", "infinity")
    return (
        _packed(folder, f"{REGISTRY}/busybox:1", layer, environment=("PATH=/bin",)),
        _packed(folder, f"{REGISTRY}/pause:1", layer, entrypoint=words),
    )


@functools.cache
def dsobs() -> Image:
    """Debian 12 with Python and, as this working tree has them, `dsobs` and `python3 -m dsobs.simulator`; made once in
    a process."""
    folder = Path(tempfile.mkdtemp(prefix="dsobs-image-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root, wheels, layer = folder / "root", folder / "wheels", folder / "dsobs-layer.tar"
    _uv("build", "--wheel", "--all-packages", "--out-dir", str(wheels))
    _uv("pip", "install", "--python", sys.executable, "--target", str(root / _SITE), "--no-deps", *_wheels(wheels))
    _finish(root)
    _tar(root, layer)
    return _packed(
        folder,
        f"{REGISTRY}/dsobs:1",
        layer,
        base=_with_dependencies(),
        entrypoint=("dsobs",),
        environment=(_PATH, "PYTHONUNBUFFERED=1"),
    )


def _wheels(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.whl")))


def _with_dependencies() -> Path:
    """Layout of the base system with what dsobs depends on, locked; kept beside the base system, by what it has."""
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    wanted = _uv("export", "--frozen", "--no-dev", "--no-emit-workspace", *extras)
    base = base_system()
    kept = base.parent / f"{base.name}-dependencies"
    kept.mkdir(exist_ok=True)
    layout = kept / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if layout.exists():
            return layout
        with tempfile.TemporaryDirectory(prefix="dsobs-image-", dir=kept) as temporary:
            folder = Path(temporary)
            (folder / "requirements").write_text(wanted)
            root, layer = folder / "root", folder / "layer.tar"
            into = ("pip", "install", "--python", sys.executable, "--target", str(root / _SITE), "--no-build")
            _uv(*into, "--requirements", str(folder / "requirements"))
            _finish(root)
            _tar(root, layer)
            made = folder / "layout"
            shutil.copytree(base / "layout", made)
            run("umoci", "raw", "add-layer", "--image", f"{made}:base", str(layer))
            made.rename(layout)
    return layout


def _finish(root: Path) -> None:
    """Compiles what was installed, once for all pods; moves its commands to /usr/local/bin, for the image's Python."""
    # What goes into a layer has no times that would tell whether it is compiled anew.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(root / _SITE, quiet=2, stripdir=str(root), prependdir="/", invalidation_mode=mode)
    (root / "usr/local/bin").mkdir(parents=True)
    for command in (root / _SITE / "bin").iterdir():
        moved = root / "usr/local/bin" / command.name
        moved.write_bytes(re.sub(rb"\A#!.*", b"#!/usr/bin/python3", command.read_bytes()))
        moved.chmod(0o755)
    shutil.rmtree(root / _SITE / "bin")


def _packed(
    folder: Path,
    name: str,
    layer: Path,
    *,
    base: Path | None = None,
    entrypoint: Sequence[str] = (),
    environment: Sequence[str] = (),
) -> Image:
    """`layer` on top of the image `base` of the layout of that name."""
    short, tag = name.removeprefix(f"{REGISTRY}/").split(":")
    layout, archive = folder / f"{short}-layout", folder / f"{short}.tar"
    image = ("--image", f"{layout}:{tag}")
    if base is None:
        run("umoci", "init", "--layout", str(layout))
        run("umoci", "new", *image)
    else:
        shutil.copytree(base, layout)
        run("umoci", "tag", "--image", f"{layout}:base", tag)
        run("umoci", "rm", "--image", f"{layout}:base")
    run("umoci", "raw", "add-layer", *image, str(layer))
    words = [*(f"--config.entrypoint={word}" for word in entrypoint), *(f"--config.env={pair}" for pair in environment)]
    run("umoci", "config", *image, *words)
    _tar(layout, archive)
    shutil.rmtree(layout)
    return Image(name, archive)


def _tar(root: Path, archive: Path) -> None:
    """The files below `root`, owned by root, without their times."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.iterdir()):
            tar.add(path, arcname=path.name, filter=plain)


def _uv(*words: str) -> str:
    local = PROJECT / ".uv/bin/uv"
    return run(str(local) if local.exists() else "uv", "--quiet", "--project", str(PROJECT), *words)

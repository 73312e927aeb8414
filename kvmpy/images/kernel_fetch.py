"""Fetches the distribution's cloud kernel, with its modules, into the cache."""

from __future__ import annotations

import os
import shutil

from kvmpy.errors import ImageError
from kvmpy.images import cache, debian, kernels
from kvmpy.images.kernels import Kernel, Progress

METAPACKAGE = "linux-image-cloud-amd64"
_PREFIX = "linux-image-"


def depends(record: str) -> list[str]:
    """The names in the Depends field of a package's record as apt-cache shows it; the first of alternatives."""
    names: list[str] = []
    for line in record.splitlines():
        if line.startswith("Depends:"):
            for relation in line.removeprefix("Depends:").split(","):
                words = relation.partition("|")[0].split()
                names += words[:1]
        elif not line and names:
            break
    return names


def versioned_image(record: str) -> str:
    """The image package that the metapackage's record points to; raises `ImageError` when it names none."""
    for name in depends(record):
        if name.startswith(_PREFIX) and name[len(_PREFIX) : len(_PREFIX) + 1].isdigit():
            return name
    raise ImageError(f"{METAPACKAGE} depends on no {_PREFIX}<version> package; `apt-get update` may help")


def fetch(progress: Progress = kernels.plain_progress) -> Kernel:
    """The distribution's cloud kernel as apt has it now, from the cache when it is there already.

    `apt-get download` needs no root.  Raises `KvmpyError` where there is no apt, or it knows no such package.
    """
    with kernels.locked(cache.FETCHED, lambda: progress("waiting for another fetch", 0, 0)):
        progress(f"looking for {METAPACKAGE}", 0, 0)
        package = versioned_image(debian.run("apt-cache", "show", "--no-all-versions", METAPACKAGE))
        version = _version(debian.run("apt-cache", "show", "--no-all-versions", package))
        name = f"{cache.FETCHED}-{package.removeprefix(_PREFIX)}-{_safe(version)}"
        for kernel in kernels.list_kernels():
            if kernel.name == name:
                return kernel
        debian.need(("kmod",), "reading a kernel's modules", lambda: progress("installing kmod", 0, 0))
        with kernels.workspace(cache.FETCHED) as work:
            progress(f"downloading {package} {version}", 0, 0)
            debian.run("apt-get", "download", f"{package}={version}", folder=work)
            return _unpack(work, name, package, version, progress)


def _unpack(work: str, name: str, package: str, version: str, progress: Progress) -> Kernel:
    archives = [entry for entry in os.listdir(work) if entry.endswith(".deb")]
    if len(archives) != 1:
        raise ImageError(f"apt-get downloaded {len(archives)} files for {package}, not one")
    progress(f"unpacking {package}", 0, 0)
    tree, result = os.path.join(work, "tree"), os.path.join(work, "result")
    debian.run("dpkg-deb", "--extract", os.path.join(work, archives[0]), tree)
    release = package.removeprefix(_PREFIX)
    image = os.path.join(tree, "boot", f"vmlinuz-{release}")
    # A merged /usr has them below usr/lib.
    folders = [os.path.join(tree, prefix, "lib/modules", release) for prefix in ("", "usr")]
    modules = next((folder for folder in folders if os.path.isdir(folder)), "")
    if not os.path.isfile(image) or not modules:
        raise ImageError(f"{package} holds no boot/vmlinuz-{release} with modules")
    os.makedirs(os.path.join(result, "lib/modules"))
    shutil.move(image, os.path.join(result, "vmlinuz"))
    shutil.move(modules, os.path.join(result, "lib/modules", release))
    config = os.path.join(tree, "boot", f"config-{release}")
    if os.path.isfile(config):
        shutil.move(config, os.path.join(result, "config"))
    progress("listing its modules", 0, 0)
    # The package leaves this to its installation script.
    debian.run(shutil.which("depmod") or "/sbin/depmod", "--basedir", result, release)
    return kernels.install(
        result, name, flavour=cache.FETCHED, release=release, source=version, image="vmlinuz", seconds=0.0
    )


def _version(record: str) -> str:
    for line in record.splitlines():
        if line.startswith("Version:"):
            return line.removeprefix("Version:").strip()
    raise ImageError("apt-cache shows a package without a version")


def _safe(version: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".-+~" else "_" for letter in version)

"""A kernel's loadable modules: which files a driver needs, in the order in which they must be loaded.

Reads what depmod wrote (modules.dep(5)): `modules.dep`, `modules.builtin`, `modules.alias`, `modules.softdep`.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import lzma
import os
import subprocess
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from kvmpy.errors import ImageError
from kvmpy.units import MIB

# What a guest on virtio-mmio wants: its disk, its network, random numbers, sockets to the host, a file system.
GUEST_MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "vmw_vsock_virtio_transport", "ext4")

_TABLE_LIMIT = 64 * MIB
_MODULE_LIMIT = 256 * MIB
_DEPTH = 64


def module_name(path: str) -> str:
    """The name of a module from its file or as people write it: `kernel/fs/foo-bar.ko.xz` gives `foo_bar`."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


class ModuleIndex:
    """The modules of one kernel: what depends on what, what is built in, and what else they are called.

    The arguments are the text of the four tables; `soft` may be empty.
    """

    def __init__(self, dependencies: str, builtin: str = "", aliases: str = "", soft: str = "") -> None:
        self._files: dict[str, str] = {}
        self._needs: dict[str, list[str]] = {}
        self._builtin = {module_name(line.strip()) for line in builtin.splitlines()}
        self._aliases: list[tuple[str, str]] = []
        self._before: dict[str, list[str]] = {}
        for line in dependencies.splitlines():
            path, colon, needs = line.partition(":")
            if not colon:
                continue
            _check_path(path)
            name = module_name(path)
            self._files[name] = path
            self._needs[name] = [module_name(need) for need in needs.split()]
        for line in aliases.splitlines():
            words = line.split()
            if len(words) == 3 and words[0] == "alias":
                self._aliases.append((words[1].replace("-", "_"), module_name(words[2])))
        for line in soft.splitlines():
            words = line.split()
            if len(words) > 2 and words[0] == "softdep":
                self._before.setdefault(module_name(words[1]), []).extend(_pre(words[2:]))

    @classmethod
    def from_folder(cls, folder: str) -> ModuleIndex:
        """The index of `lib/modules/<release>`; raises `ImageError` when there is no modules.dep or it is too large."""
        names = ("modules.dep", "modules.builtin", "modules.alias", "modules.softdep")
        return cls(*(_read_table(os.path.join(folder, name), needed=name == "modules.dep") for name in names))

    def closure(self, wanted: Iterable[str]) -> list[str]:
        """The files to load for the modules or aliases `wanted`, each after those it needs, as paths in modules.dep.

        What is built into the kernel needs no file.  Raises `ImageError` for a module that there is not, and for
        modules that need each other.
        """
        ordered: dict[str, None] = {}
        for name in wanted:
            for found in self._resolve(name):
                self._visit(found, ordered, ())
        return [self._files[name] for name in ordered]

    def _resolve(self, name: str, *, soft: bool = False) -> Iterator[str]:
        plain = module_name(name)
        if plain in self._files or plain in self._builtin:
            found = [plain]
        else:
            text = name.replace("-", "_")
            found = list(dict.fromkeys(to for alias, to in self._aliases if fnmatch.fnmatchcase(text, alias)))
        if not found and not soft:
            raise ImageError(f"this kernel has no module {name!r}")
        return iter(found)

    def _visit(self, name: str, ordered: dict[str, None], above: tuple[str, ...]) -> None:
        if name in ordered or (name not in self._files and name in self._builtin):
            return
        if name not in self._files:
            raise ImageError(f"module {above[-1] if above else name!r} needs {name!r}, which modules.dep does not have")
        if name in above or len(above) >= _DEPTH:
            raise ImageError(f"modules.dep goes in a circle: {' needs '.join((*above, name))}")
        # What a module asks for by a soft dependency would be loaded by modprobe, which an initramfs may not have.
        for wish in self._before.get(name, ()):
            for found in self._resolve(wish, soft=True):
                if found not in above:
                    self._visit(found, ordered, (*above, name))
        for need in self._needs[name]:
            self._visit(need, ordered, (*above, name))
        ordered[name] = None


def _check_path(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/"):
        raise ImageError(f"modules.dep names {path[:80]!r}, which is not below its own folder")


def _pre(words: list[str]) -> Iterator[str]:
    kind = ""
    for word in words:
        if word.endswith(":"):
            kind = word
        elif kind == "pre:":
            yield word


def _read_table(path: str, *, needed: bool) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as table:
            text = table.read(_TABLE_LIMIT + 1)
    except FileNotFoundError:
        if needed:
            raise ImageError(f"{path}: not there; `depmod` makes it") from None
        return ""
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    if len(text) > _TABLE_LIMIT:
        raise ImageError(f"{path}: larger than 64 MiB")
    return text


def read_module(path: str, *, limit: int = _MODULE_LIMIT) -> bytes:
    """The module at `path`, unpacked if it is .xz, .gz or .zst (by the `zstd` command), to at most `limit` bytes."""
    try:
        if path.endswith(".zst"):
            data = _unzstd(path, limit)
        else:
            with _open(path) as packed:
                data = packed.read(limit + 1)
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise ImageError(f"{path}: damaged ({error})") from error
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise ImageError(f"{path}: unpacks to more than {limit} bytes")
    return data


def _open(path: str) -> BinaryIO | gzip.GzipFile | lzma.LZMAFile:
    if path.endswith(".xz"):
        return lzma.open(path, "rb")
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _unzstd(path: str, limit: int) -> bytes:
    try:
        import zstandard  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return _unzstd_command(path, limit)
    try:
        with open(path, "rb") as packed:
            return bytes(zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed.read(limit))).read(limit + 1))
    except zstandard.ZstdError as error:
        raise ImageError(f"{path}: damaged ({error})") from error


def _unzstd_command(path: str, limit: int) -> bytes:
    try:
        process = subprocess.Popen(["zstd", "-dcq", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        advice = "`pip install kvmpy[images]` or `apt-get install zstd` brings what is needed"
        raise ImageError(f"{path}: packed with zstd; {advice}") from None
    assert process.stdout is not None
    with process, process.stdout:
        data = process.stdout.read(limit + 1)
        if len(data) > limit:
            process.kill()
    if process.returncode and len(data) <= limit:
        raise ImageError(f"{path}: damaged")
    return data


def collect(folder: str, wanted: Iterable[str] = GUEST_MODULES) -> dict[str, bytes]:
    """The modules for `wanted` out of `lib/modules/<release>`: file name (`virtio_blk.ko`) to content, in load order.

    This is what `initramfs.default_initramfs` takes.
    """
    files = ModuleIndex.from_folder(folder).closure(wanted)
    return {f"{module_name(path)}.ko": read_module(os.path.join(folder, path)) for path in files}


def for_kernel(kernel: str, wanted: Iterable[str] = GUEST_MODULES) -> dict[str, bytes]:
    """What `collect` gives for a kernel file of the cache; nothing where no `lib/modules` lies beside it."""
    folder = os.path.join(os.path.dirname(os.path.realpath(kernel)), "lib/modules")
    try:
        releases = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ImageError(f"{folder}: {error.strerror}") from error
    return collect(os.path.join(folder, releases[-1]), wanted) if releases else {}

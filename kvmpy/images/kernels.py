"""Guest kernels in the cache: what is there, under which name, and how a new one gets in whole or not at all.

A kernel's folder is named by a hash over all that decides what it is: the configuration fragments, the version of
the source package, and the recipe here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from kvmpy.errors import ConfigError, HostError, ImageError
from kvmpy.images import cache

SOURCE_PACKAGE = "linux-source-6.1"
# Inlined `rep stosb` costs one emulated step a byte; nobody reads the warnings of a kernel that is not ours.
COMPILER_FLAGS = "-mstringop-strategy=libcall -w"
# Counts up when the way a kernel is built changes what comes out.
RECIPE = 1

RECORD = "kernel.json"
_FRAGMENTS = {"base": ("base.config",), "full": ("base.config", "full.config")}
_RECORD_LIMIT = 1 << 16

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: unknown)."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the cache; `path` is the file to boot, `folder` holds what belongs to it.

    `modules` is its `lib/modules/<release>` or empty; `seconds` is how long the build took, 0 for a fetched one.
    """

    name: str
    flavour: str
    release: str
    source: str
    path: str
    folder: str
    size: int
    modules: str = ""
    seconds: float = 0.0


def fragment(flavour: str) -> str:
    """The configuration of a flavour: the text of its fragments; what a later one says counts."""
    if flavour not in _FRAGMENTS:
        raise ConfigError("flavour", f"{flavour!r} is not a kernel that kvmpy builds; there are base and full")
    here = os.path.join(os.path.dirname(__file__), "kernel-configs")
    texts = []
    for name in _FRAGMENTS[flavour]:
        with open(os.path.join(here, name), encoding="utf-8") as text:
            texts.append(text.read())
    return "\n".join(texts)


def options(config: str) -> dict[str, str]:
    """The options of a configuration or fragment, name to value (`n` where it says so); the last word counts."""
    result: dict[str, str] = {}
    for line in config.splitlines():
        words = line.split()
        if line.startswith("# CONFIG_") and line.endswith(" is not set"):
            result[words[1]] = "n"
        elif line.startswith("CONFIG_"):
            name, _, value = line.strip().partition("=")
            result[name] = value
    return result


def unmet(wanted: str, got: str) -> list[str]:
    """What `wanted` asks for that the final configuration `got` does not have, as `CONFIG_X=y (is n)`."""
    final = options(got)
    pairs = ((name, value, final.get(name, "n")) for name, value in options(wanted).items())
    return [f"{name}={value} (is {is_now})" for name, value, is_now in pairs if value != is_now]


def key(flavour: str, source_version: str) -> str:
    """The name of the kernel that `flavour` would be if it were built now from that version of the source package."""
    # Comments and order change nothing.
    asked = sorted(options(fragment(flavour)).items())
    text = "\n".join((flavour, repr(asked), SOURCE_PACKAGE, source_version, COMPILER_FLAGS, str(RECIPE)))
    return f"{flavour}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def source_version() -> str:
    """The version of the kernel source package installed here, or an empty string."""
    try:
        query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", SOURCE_PACKAGE]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    status, _, version = answer.stdout.partition(" ")
    return version if answer.returncode == 0 and status == "installed" else ""


def find(flavour: str) -> Kernel | None:
    """The built kernel of `flavour` as its fragments stand now, or the fetched one for `fetched`; None if not there.

    Without the source package here, one built from any version of it is taken.
    """
    if flavour == cache.FETCHED:
        return _load(os.path.join(cache.kernels_folder(), cache.FETCHED))
    here = source_version()
    for kernel in list_kernels():
        if kernel.flavour == flavour and kernel.name == key(flavour, here or kernel.source):
            return kernel
    return None


def path(flavour: str = "base") -> str:
    """The file to boot of the kernel of `flavour`; raises `ImageError` with what to do when there is none."""
    if flavour not in (*_FRAGMENTS, cache.FETCHED):
        raise ConfigError("flavour", f"{flavour!r} is not one of {', '.join((*_FRAGMENTS, cache.FETCHED))}")
    kernel = find(flavour)
    if kernel is None:
        command = "fetch" if flavour == cache.FETCHED else f"build {flavour}"
        raise ImageError(f"the kernel {flavour!r} is not in the cache; `kvmpy kernel {command}` gets it")
    return kernel.path


def list_kernels() -> list[Kernel]:
    """All whole kernels in the cache, by name."""
    folder = cache.kernels_folder()
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ImageError(f"{folder}: {error.strerror}") from error
    paths = [os.path.join(folder, name) for name in names if not name.startswith(".")]
    found = [_load(one) for one in paths if not os.path.islink(one)]
    return [kernel for kernel in found if kernel is not None]


def _load(folder: str) -> Kernel | None:
    try:
        folder = os.path.realpath(folder)
        with open(os.path.join(folder, RECORD), encoding="utf-8") as record:
            fields: dict[str, Any] = json.loads(record.read(_RECORD_LIMIT))
        image = os.path.join(folder, os.path.basename(str(fields["image"])))
        modules = f"lib/modules/{fields['release']}"
        has_modules = os.path.isdir(os.path.join(folder, modules))
        return Kernel(
            os.path.basename(folder),
            str(fields["flavour"]),
            str(fields["release"]),
            str(fields["source"]),
            image,
            folder,
            os.stat(image).st_size,
            os.path.join(folder, modules) if has_modules else "",
            float(fields["seconds"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        # A folder without a readable record is no kernel of ours, or not a whole one.
        return None


def describe(kernel: Kernel) -> dict[str, Any]:
    """`kernel` as plain values for JSON."""
    return asdict(kernel)


@contextlib.contextmanager
def locked(flavour: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock of a flavour, so that two processes do not make one kernel; calls `waiting` if it must wait."""
    folder = cache.kernels_folder()
    try:
        os.makedirs(folder, exist_ok=True)
        lock = os.open(os.path.join(folder, f".lock-{flavour}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(
            "open", error.errno or 0, f"kvmpy keeps kernels in {folder}; KVMPY_CACHE names another"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def workspace(flavour: str) -> Iterator[str]:
    """A folder in the cache for making a kernel of `flavour`, gone at the end; needs the lock, for it also removes
    what a killed process left there.
    """
    parent = cache.kernels_folder()
    prefix = f".work-{flavour}-"
    for name in os.listdir(parent):
        if name.startswith(prefix):
            shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=prefix, dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def install(
    folder: str, name: str, *, flavour: str, release: str, source: str, image: str, seconds: float = 0.0
) -> Kernel:
    """Makes `folder`, which is in the cache's file system and holds a whole kernel, the kernel `name` of the cache."""
    record = {"flavour": flavour, "release": release, "source": source, "image": image, "seconds": round(seconds, 1)}
    with open(os.path.join(folder, RECORD), "w", encoding="utf-8") as text:
        json.dump(record, text, indent=2)
    os.chmod(folder, 0o755)
    parent = cache.kernels_folder()
    target = os.path.join(parent, name)
    link, draft = os.path.join(parent, flavour), os.path.join(parent, f".link-{flavour}")
    _make_way(target)
    os.rename(folder, target)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    os.symlink(name, draft)
    if not os.path.islink(link):
        _make_way(link)
    os.replace(draft, link)
    kernel = _load(target)
    if kernel is None:
        raise ImageError(f"{target}: the kernel made there cannot be read back")
    return kernel


def _make_way(path: str) -> None:
    """Removes the folder at `path`, if there is one, in one step for those who look."""
    if os.path.isdir(path):
        old = tempfile.mkdtemp(prefix=".old-", dir=os.path.dirname(path))
        os.rename(path, os.path.join(old, os.path.basename(path)))
        shutil.rmtree(old, ignore_errors=True)


def plain_progress(step: str, done: int, total: int) -> None:
    """Progress as lines on stderr: each step once, and a count every 100."""
    if done == 0:
        print(f"kvmpy: {step}", file=sys.stderr, flush=True)
    elif done % 100 == 0:
        print(f"kvmpy: {step}: {done} of about {total}", file=sys.stderr, flush=True)

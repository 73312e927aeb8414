from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import ImageError
from kvmpy.images import kernels, modules
from kvmpy.images.modules import ModuleIndex

DEPENDENCIES = """\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_mmio.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/jbd2/jbd2.ko
kernel/lib/crc16.ko:
kernel/fs/jbd2/jbd2.ko:
kernel/crypto/crc32c_generic.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/net/failing.ko: kernel/net/absent.ko
"""
BUILTIN = "kernel/fs/ext2/ext2.ko\nkernel/block/mq-deadline.ko\n"
ALIASES = """\
# Aliases extracted from modules themselves.
alias virtio:d00000002v* virtio_blk
alias fs-ext4 ext4
alias crc32c crc32c_intel
alias crc32c crc32c_generic
"""
SOFT = "softdep ext4 pre: crc32c post: unheard\nsoftdep virtio_blk post: ext4\n"

INDEX = ModuleIndex(DEPENDENCIES, BUILTIN, ALIASES, SOFT)

VIRTIO = ["kernel/drivers/virtio/virtio.ko", "kernel/drivers/virtio/virtio_ring.ko"]


def test_a_module_comes_after_those_it_needs() -> None:
    assert INDEX.closure(["virtio_mmio"]) == [*VIRTIO, "kernel/drivers/virtio/virtio_mmio.ko"]


def test_what_two_modules_need_is_loaded_once() -> None:
    assert INDEX.closure(["virtio_blk", "virtio_mmio"]) == [
        *VIRTIO,
        "kernel/drivers/block/virtio_blk.ko.xz",
        "kernel/drivers/virtio/virtio_mmio.ko",
    ]


def test_dashes_and_underscores_are_the_same() -> None:
    assert INDEX.closure(["virtio-mmio"]) == INDEX.closure(["virtio_mmio"])
    assert INDEX.closure(["crc32c_intel"]) == ["kernel/arch/x86/crypto/crc32c-intel.ko"]


def test_a_device_is_found_by_its_alias() -> None:
    assert INDEX.closure(["virtio:d00000002v00001AF4"]) == INDEX.closure(["virtio_blk"])
    assert INDEX.closure(["fs-ext4"]) == INDEX.closure(["ext4"])


def test_soft_dependencies_come_first_and_those_after_do_not_count() -> None:
    assert INDEX.closure(["ext4"]) == [
        "kernel/arch/x86/crypto/crc32c-intel.ko",
        "kernel/crypto/crc32c_generic.ko",
        "kernel/lib/crc16.ko",
        "kernel/fs/jbd2/jbd2.ko",
        "kernel/fs/ext4/ext4.ko",
    ]
    assert "kernel/fs/ext4/ext4.ko" not in INDEX.closure(["virtio_blk"])


def test_what_is_built_in_needs_no_file() -> None:
    assert INDEX.closure(["ext2", "mq_deadline"]) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nonesuch", "no module 'nonesuch'"),
        ("virtio:d0000FFFFv0", "no module"),
        ("failing", "'failing' needs 'absent'"),
    ],
)
def test_says_which_module_is_not_there(name: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        INDEX.closure([name])


def test_modules_that_need_each_other_are_refused() -> None:
    with pytest.raises(ImageError, match="in a circle: a needs b needs a"):
        ModuleIndex("a.ko: b.ko\nb.ko: a.ko\n").closure(["a"])


def test_a_chain_that_is_too_long_is_refused() -> None:
    chain = "".join(f"m{number}.ko: m{number + 1}.ko\n" for number in range(5000))
    with pytest.raises(ImageError, match="circle"):
        ModuleIndex(chain + "m5000.ko:\n").closure(["m0"])


@pytest.mark.parametrize("path", ["/etc/shadow", "../../etc/shadow", "kernel/../../x.ko"])
def test_a_table_cannot_name_files_elsewhere(path: str) -> None:
    with pytest.raises(ImageError, match="not below"):
        ModuleIndex(f"{path}:\n")


@given(*(st.text("ab:./ *[\nalisofdepr", max_size=60),) * 4)
def test_any_tables_end_in_a_list_or_one_error(dependencies: str, builtin: str, aliases: str, soft: str) -> None:
    try:
        ModuleIndex(dependencies, builtin, aliases, soft).closure(["a", "b:"])
    except ImageError:
        pass


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)])
def test_unpacks_a_module(tmp_path: Path, suffix: str, pack: type[bytes]) -> None:
    path = tmp_path / f"a.ko{suffix}"
    path.write_bytes(pack(b"\x7fELF module"))
    assert modules.read_module(str(path)) == b"\x7fELF module"


@pytest.mark.skipif(not shutil.which("zstd"), reason="needs the command zstd")
def test_unpacks_a_module_packed_with_zstd(tmp_path: Path) -> None:
    path = tmp_path / "a.ko.zst"
    path.write_bytes(subprocess.run(["zstd", "-q"], input=b"module", capture_output=True, check=True).stdout)
    assert modules.read_module(str(path)) == b"module"


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_refuses_a_damaged_module(tmp_path: Path, suffix: str, pack: type[bytes]) -> None:
    path = tmp_path / f"a.ko{suffix}"
    path.write_bytes(pack(b"module")[:-9])
    with pytest.raises(ImageError, match="damaged"):
        modules.read_module(str(path))
    path.write_bytes(b"not packed at all")
    with pytest.raises(ImageError, match="damaged"):
        modules.read_module(str(path))


def test_a_module_unpacks_to_the_limit_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "a.ko.xz"
    path.write_bytes(lzma.compress(bytes(1_000_000)))
    with pytest.raises(ImageError, match="more than 1000 bytes"):
        modules.read_module(str(path), limit=1000)


def test_collects_the_content_in_load_order(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text("sub/a-one.ko.xz: b.ko\nb.ko:\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a-one.ko.xz").write_bytes(lzma.compress(b"a"))
    (tmp_path / "b.ko").write_bytes(b"b")
    assert list(modules.collect(str(tmp_path), ["a_one"]).items()) == [("b.ko", b"b"), ("a_one.ko", b"a")]


def test_a_kernel_brings_the_modules_that_lie_beside_it(tmp_path: Path) -> None:
    assert modules.for_kernel(str(tmp_path / "vmlinuz")) == {}
    folder = tmp_path / "lib/modules/6.1.0"
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text("b.ko:\n")
    (folder / "b.ko").write_bytes(b"b")
    (tmp_path / "link").symlink_to(tmp_path)
    assert modules.for_kernel(str(tmp_path / "link/vmlinuz"), ["b"]) == {"b.ko": b"b"}


def test_says_that_modules_dep_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="`depmod` makes it"):
        ModuleIndex.from_folder(str(tmp_path))


def test_the_closure_over_the_fetched_kernel_is_whole() -> None:
    kernel = kernels.find("fetched")
    if kernel is None:
        pytest.skip("no fetched kernel: `kvmpy kernel fetch` gets one")
    seen: list[str] = []
    for file, content in modules.collect(kernel.modules).items():
        assert content[:4] == b"\x7fELF"
        # What the module itself says that it needs, whatever depmod made of it.
        needs = content.partition(b"\0depends=")[2].partition(b"\0")[0].decode()
        assert {modules.module_name(need) for need in needs.split(",") if need} <= set(seen)
        seen.append(modules.module_name(file))
    assert len(seen) == len(set(seen)) >= 5

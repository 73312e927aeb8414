"""A VM's memory: slots of guest RAM, private memory, who wrote to which page, writes that are only noted."""

from __future__ import annotations

from kvmpy.kvm._ffi import ffi, ioctl, ioctl_value, lib
from kvmpy.kvm.capabilities import KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
from kvmpy.kvm.fd import KvmFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from typing import Any

KVM_MEM_LOG_DIRTY_PAGES: int = lib.KVM_MEM_LOG_DIRTY_PAGES
KVM_MEM_READONLY: int = lib.KVM_MEM_READONLY
KVM_MEM_GUEST_MEMFD: int = lib.KVM_MEM_GUEST_MEMFD

KVM_MEMORY_ATTRIBUTE_PRIVATE: int = lib.KVM_MEMORY_ATTRIBUTE_PRIVATE

# KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2's argument.
KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1
KVM_DIRTY_LOG_INITIALLY_SET = 2

_PAGE = 4096
_DIRTY_GFN_SIZE: int = ffi.sizeof("struct kvm_dirty_gfn")


class VmMemory(KvmFd):
    """The part of `Vm` that is about memory."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # KVM reads guest RAM through the host's mapping, so that must live as long as the slot does.
        self._buffers: dict[int, Any] = {}
        self._dirty_ring_entries = 0

    def close(self) -> None:
        """Closes the fd; the machine goes when its vCPUs are closed too.  Twice is fine."""
        super().close()
        self._buffers.clear()

    # --- slots

    def set_memory_region(self, slot: int, guest_address: int, buffer: mmap.mmap | memoryview, flags: int = 0) -> None:
        """Makes `buffer` (page-aligned, whole pages) guest RAM at `guest_address` (api.rst 4.35).

        The same slot again changes it.  The buffer is held until the slot is removed or the VM is closed.
        """
        mapping = ffi.from_buffer(buffer)
        self._set_region(slot, flags, guest_address, len(mapping), int(ffi.cast("uintptr_t", mapping)))
        self._buffers[slot] = mapping

    def set_private_memory_region(
        self,
        slot: int,
        guest_address: int,
        buffer: mmap.mmap | memoryview,
        guest_memfd: int,
        offset: int = 0,
        flags: int = KVM_MEM_GUEST_MEMFD,
    ) -> None:
        """As `set_memory_region`, and pages that are private come from `guest_memfd` at `offset` (api.rst 4.140).

        Which are private is said with `set_memory_attributes`.
        """
        mapping = ffi.from_buffer(buffer)
        argument = ffi.new("struct kvm_userspace_memory_region2 *")
        argument.slot, argument.flags = slot, flags
        argument.guest_phys_addr, argument.memory_size = guest_address, len(mapping)
        argument.userspace_addr = int(ffi.cast("uintptr_t", mapping))
        argument.guest_memfd, argument.guest_memfd_offset = guest_memfd, offset
        ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION2", argument)
        self._buffers[slot] = mapping

    def remove_memory_region(self, slot: int) -> None:
        """Takes the RAM in `slot` from the guest."""
        self._set_region(slot, 0, 0, 0, 0)
        self._buffers.pop(slot, None)

    def _set_region(self, slot: int, flags: int, guest_address: int, size: int, address: int) -> None:
        region = ffi.new("struct kvm_userspace_memory_region *", (slot, flags, guest_address, size, address))
        ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION", region)

    # --- private memory

    def create_guest_memfd(self, size: int, flags: int = 0) -> int:
        """A new fd with `size` bytes of memory that only this VM's guest sees; the caller closes it (api.rst 4.142)."""
        argument = ffi.new("struct kvm_create_guest_memfd *")
        argument.size, argument.flags = size, flags
        return ioctl(self.fd, "KVM_CREATE_GUEST_MEMFD", argument)

    def set_memory_attributes(self, address: int, size: int, attributes: int) -> None:
        """Says what guest-physical pages are: `KVM_MEMORY_ATTRIBUTE_PRIVATE`, or 0 for shared (api.rst 4.141)."""
        ioctl(
            self.fd, "KVM_SET_MEMORY_ATTRIBUTES", ffi.new("struct kvm_memory_attributes *", (address, size, attributes))
        )

    def encrypt_op(self, argument: bytearray) -> None:
        """A command to the memory encryption of SEV or TDX, in their struct; KVM answers in it (api.rst 4.110)."""
        with ffi.from_buffer(argument, require_writable=True) as struct:
            ioctl(self.fd, "KVM_MEMORY_ENCRYPT_OP", struct)

    def register_encrypted_region(self, buffer: mmap.mmap | memoryview) -> None:
        """Pins guest RAM that holds encrypted pages (api.rst 4.111)."""
        self._encrypted_region("KVM_MEMORY_ENCRYPT_REG_REGION", buffer)

    def unregister_encrypted_region(self, buffer: mmap.mmap | memoryview) -> None:
        """Undoes `register_encrypted_region` (api.rst 4.112)."""
        self._encrypted_region("KVM_MEMORY_ENCRYPT_UNREG_REGION", buffer)

    def _encrypted_region(self, call: str, buffer: mmap.mmap | memoryview) -> None:
        with ffi.from_buffer(buffer) as mapping:
            address = int(ffi.cast("uintptr_t", mapping))
            ioctl(self.fd, call, ffi.new("struct kvm_enc_region *", (address, len(mapping))))

    # --- which pages the guest wrote: a bitmap a slot

    def dirty_log(self, slot: int, size: int) -> bytes:
        """Which pages of `slot` (`size` bytes long) the guest wrote since the last call, a bit a page (api.rst 4.8).

        Clears them, unless `protect_dirty_log_by_hand` was called.
        """
        bitmap = ffi.new("char[]", (size // _PAGE + 63) // 64 * 8)
        log = ffi.new("struct kvm_dirty_log *")
        log.slot = slot
        log.dirty_bitmap = bitmap
        ioctl(self.fd, "KVM_GET_DIRTY_LOG", log)
        return bytes(ffi.buffer(bitmap))

    def protect_dirty_log_by_hand(self, flags: int = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) -> None:
        """Leaves the clearing of dirty bits to `clear_dirty_log`, before any slot logs them (api.rst 7.18).

        With `KVM_DIRTY_LOG_INITIALLY_SET` all pages of a new slot count as dirty.
        """
        self._enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, (flags,), 0)

    def clear_dirty_log(self, slot: int, first_page: int, pages: int, bitmap: bytes) -> None:
        """Clears those of `pages` pages from `first_page` on whose bits are set in `bitmap` (api.rst 4.117).

        `first_page` is a multiple of 64, and so is `pages` unless it reaches the end of the slot.
        """
        if len(bitmap) < (pages + 7) // 8:
            raise ValueError(f"a bitmap of {len(bitmap)} bytes is too short for {pages} pages")
        log = ffi.new("struct kvm_clear_dirty_log *")
        log.slot, log.num_pages, log.first_page = slot, pages, first_page
        bits = ffi.new("char[]", bitmap.ljust((pages + 63) // 64 * 8, b"\0"))
        log.dirty_bitmap = bits
        ioctl(self.fd, "KVM_CLEAR_DIRTY_LOG", log)

    # --- which pages the guest wrote: a ring a vCPU

    def enable_dirty_rings(self, entries: int) -> None:
        """Gives each vCPU made later a ring of `entries` (a power of 2) dirty pages (api.rst 8.29).

        `Vcpu.dirty_ring` reads it; `check_extension(KVM_CAP_DIRTY_LOG_RING_ACQ_REL)` is its largest size in bytes.
        """
        self._enable(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, (entries * _DIRTY_GFN_SIZE,), 0)
        self._dirty_ring_entries = entries

    def reset_dirty_rings(self) -> int:
        """Write-protects again the pages that were taken from all rings: how many (api.rst 8.29)."""
        return ioctl_value(self.fd, "KVM_RESET_DIRTY_RINGS")

    # --- writes that are only noted

    def register_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """Keeps writes to this range in the vCPU's ring, without an exit: `Vcpu.drain_coalesced` (api.rst 4.116)."""
        self._coalesced("KVM_REGISTER_COALESCED_MMIO", address, size, pio)

    def unregister_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """Undoes `register_coalesced`."""
        self._coalesced("KVM_UNREGISTER_COALESCED_MMIO", address, size, pio)

    def _coalesced(self, call: str, address: int, size: int, pio: bool) -> None:
        zone = ffi.new("struct kvm_coalesced_mmio_zone *", {"addr": address, "size": size})
        zone.pio = pio
        ioctl(self.fd, call, zone)

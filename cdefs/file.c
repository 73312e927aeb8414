/* What Python's os module lacks for disk images: fallocate with a mode, and statx. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/stat.h>

#include "file.h"

/* 0 or -errno. */
int kvmpy_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    return fallocate(fd, mode, (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}

/* The bytes that offsets, lengths and addresses of O_DIRECT have to be multiples of; 0 where the kernel or the file
 * system does not tell. */
int kvmpy_direct_alignment(int fd)
{
#ifdef STATX_DIOALIGN
    struct statx status = {0};
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) < 0)
        return -errno;
    if (status.stx_mask & STATX_DIOALIGN)
        return (int)(status.stx_dio_mem_align > status.stx_dio_offset_align ? status.stx_dio_mem_align
                                                                            : status.stx_dio_offset_align);
#endif
    return 0;
}

/* io_uring by its bare system calls: a ring that takes vectored reads and writes, fdatasync and fallocate by batches.
 *
 * One thread at a time uses a ring.  The kernel copies an entry and its iovecs while it is submitted
 * (IORING_FEAT_SUBMIT_STABLE); the buffers have to stay until the completion is reaped. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/io_uring.h>

#include "io_uring.h"

#define NEEDED_FEATURES (IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE)

struct kvmpy_ring {
    int fd;
    unsigned int entries;
    unsigned int prepared; /* Entries that are written and not yet shown to the kernel. */
    unsigned int *sq_head, *sq_tail, *sq_array, sq_mask;
    unsigned int *cq_head, *cq_tail, cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    void *rings;
    size_t rings_size, sqes_size;
};

static const uint8_t needed_operations[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE};

/* 0 where the kernel knows every operation that we use, else -errno. */
static int probe_operations(int fd)
{
    enum { OPERATIONS = 64 };
    struct io_uring_probe *probe = calloc(1, sizeof *probe + OPERATIONS * sizeof(struct io_uring_probe_op));
    int error = 0;
    if (!probe)
        return -ENOMEM;
    if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_PROBE, probe, OPERATIONS) < 0)
        error = -errno;
    for (size_t i = 0; !error && i < sizeof needed_operations; i++) {
        uint8_t operation = needed_operations[i];
        if (operation > probe->last_op || !(probe->ops[operation].flags & IO_URING_OP_SUPPORTED))
            error = -EOPNOTSUPP;
    }
    free(probe);
    return error;
}

static int map_rings(struct kvmpy_ring *ring, const struct io_uring_params *params)
{
    size_t sq_size = params->sq_off.array + params->sq_entries * sizeof(unsigned int);
    size_t cq_size = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
    char *base;

    ring->rings_size = sq_size > cq_size ? sq_size : cq_size;
    ring->sqes_size = params->sq_entries * sizeof(struct io_uring_sqe);
    base = mmap(NULL, ring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
    if (base == MAP_FAILED)
        return -errno;
    ring->rings = base;
    ring->sqes = mmap(NULL, ring->sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
    if (ring->sqes == MAP_FAILED) {
        ring->sqes = NULL;
        return -errno;
    }
    ring->sq_head = (unsigned int *)(base + params->sq_off.head);
    ring->sq_tail = (unsigned int *)(base + params->sq_off.tail);
    ring->sq_array = (unsigned int *)(base + params->sq_off.array);
    ring->sq_mask = *(unsigned int *)(base + params->sq_off.ring_mask);
    ring->cq_head = (unsigned int *)(base + params->cq_off.head);
    ring->cq_tail = (unsigned int *)(base + params->cq_off.tail);
    ring->cq_mask = *(unsigned int *)(base + params->cq_off.ring_mask);
    ring->cqes = (struct io_uring_cqe *)(base + params->cq_off.cqes);
    ring->entries = params->sq_entries;
    return 0;
}

/* Makes a ring for at least `entries` (a power of two is best) that counts completions up on `event_fd`; NULL with
 * -errno in `error` where the kernel refuses, or lacks what we need. */
struct kvmpy_ring *kvmpy_ring_open(unsigned int entries, int event_fd, int *error)
{
    struct io_uring_params params = {0};
    struct kvmpy_ring *ring = calloc(1, sizeof *ring);

    if (!ring) {
        *error = -ENOMEM;
        return NULL;
    }
    ring->fd = (int)syscall(SYS_io_uring_setup, entries, &params);
    if (ring->fd < 0)
        *error = -errno;
    else if ((params.features & NEEDED_FEATURES) != NEEDED_FEATURES)
        *error = -EOPNOTSUPP;
    else
        *error = probe_operations(ring->fd);
    if (!*error)
        *error = map_rings(ring, &params);
    if (!*error && syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_EVENTFD, &event_fd, 1) < 0)
        *error = -errno;
    if (*error) {
        kvmpy_ring_close(ring);
        return NULL;
    }
    return ring;
}

/* Frees a ring whose completions were all reaped. */
void kvmpy_ring_close(struct kvmpy_ring *ring)
{
    if (ring->sqes)
        munmap(ring->sqes, ring->sqes_size);
    if (ring->rings)
        munmap(ring->rings, ring->rings_size);
    if (ring->fd >= 0)
        close(ring->fd);
    free(ring);
}

/* Writes the next entry; -EBUSY while there is no room, until entries are submitted. */
int kvmpy_ring_prepare(struct kvmpy_ring *ring, int opcode, int fd, uint64_t address, uint32_t length, uint64_t offset,
                       uint32_t flags, uint64_t id)
{
    unsigned int tail = *ring->sq_tail + ring->prepared;
    unsigned int index = tail & ring->sq_mask;
    struct io_uring_sqe *sqe = &ring->sqes[index];

    if (tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) >= ring->entries)
        return -EBUSY;
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = (uint8_t)opcode;
    sqe->fd = fd;
    sqe->addr = address;
    sqe->len = length;
    sqe->off = offset;
    sqe->rw_flags = (int)flags; /* The same field as fsync_flags. */
    sqe->user_data = id;
    ring->sq_array[index] = index;
    ring->prepared++;
    return 0;
}

/* Shows the prepared entries to the kernel and waits until `wait_for` completions are there.  0, or -errno; what the
 * kernel did not take goes with the next call. */
int kvmpy_ring_submit(struct kvmpy_ring *ring, unsigned int wait_for)
{
    unsigned int left, flags = wait_for ? IORING_ENTER_GETEVENTS : 0;

    __atomic_store_n(ring->sq_tail, *ring->sq_tail + ring->prepared, __ATOMIC_RELEASE);
    ring->prepared = 0;
    while ((left = *ring->sq_tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE)) || wait_for) {
        long taken = syscall(SYS_io_uring_enter, ring->fd, left, wait_for, flags, NULL, 0);
        if (taken < 0 && errno != EINTR)
            return -errno;
        if (taken >= 0) {
            wait_for = 0;
            flags = 0;
            if (!taken && left)
                return -EAGAIN;
        }
    }
    return 0;
}

/* Takes what is complete, at most `room`, and says how many. */
int kvmpy_ring_reap(struct kvmpy_ring *ring, struct kvmpy_completion *completions, int room)
{
    unsigned int head = *ring->cq_head;
    unsigned int tail = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
    int count = 0;

    for (; head != tail && count < room; head++, count++) {
        const struct io_uring_cqe *cqe = &ring->cqes[head & ring->cq_mask];
        completions[count].id = cqe->user_data;
        completions[count].result = cqe->res;
    }
    __atomic_store_n(ring->cq_head, head, __ATOMIC_RELEASE);
    return count;
}

/* What Python cannot do at speed, or not at all: ioctls that return -errno, KVM_RUN, and the kick that ends it. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/kvm.h>

#include "vcpu.h"

int kvmpy_ioctl(int fd, unsigned long request, void *argument)
{
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

int kvmpy_ioctl_value(int fd, unsigned long request, unsigned long value)
{
    int result = ioctl(fd, request, value);
    return result < 0 ? -errno : result;
}

/* Runs the guest until it needs us; the exit reason, or -errno.  A kick or signal is KVM_EXIT_INTR, as is EAGAIN: the
 * vCPU left "uninitialized" by an INIT or SIPI, and wants to be entered again. */
int kvmpy_vcpu_run(int fd, struct kvm_run *run)
{
    if (ioctl(fd, KVM_RUN, 0) < 0)
        return errno == EINTR || errno == EAGAIN ? KVM_EXIT_INTR : -errno;
    return (int)run->exit_reason;
}

/* Its only purpose is to interrupt KVM_RUN: a signal that is ignored, or that has no handler, would not. */
static void on_kick(int signal)
{
    (void)signal;
}

/* Makes this process ready for kvmpy_kick.  The last real-time signal is the one that nobody else is likely to use. */
int kvmpy_kick_install(void)
{
    struct sigaction action = {.sa_handler = on_kick};
    sigemptyset(&action.sa_mask);
    return sigaction(SIGRTMAX, &action, NULL) < 0 ? -errno : 0;
}

/* Ends the KVM_RUN of thread `tid`, or its next one: immediate_exit closes the gap in which a signal comes too early. */
int kvmpy_kick(int tid, struct kvm_run *run)
{
    __atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    if (syscall(SYS_tgkill, getpid(), tid, SIGRTMAX) < 0)
        return -errno;
    return 0;
}

/* The bare loop that Python's share of an exit is measured against: runs until `exits` port writes came, and does
 * nothing with them.  The number of port writes, or -errno; any other exit ends it early. */
int64_t kvmpy_pio_write_loop(int fd, struct kvm_run *run, int64_t exits)
{
    int64_t seen = 0;
    while (seen < exits) {
        if (ioctl(fd, KVM_RUN, 0) < 0) {
            if (errno == EINTR && !run->immediate_exit)
                continue; /* A signal that has nothing to do with us. */
            return -errno;
        }
        if (run->exit_reason != KVM_EXIT_IO || run->io.direction != KVM_EXIT_IO_OUT)
            break;
        seen++;
    }
    return seen;
}

/* Takes the pages that KVM put into a dirty ring of `entries`, from number `first` on, and hands each back to KVM to be
 * reset: how many, at most `room`.  KVM publishes and takes an entry by its flags, so they are read first and written
 * last. */
uint32_t kvmpy_dirty_ring_take(struct kvm_dirty_gfn *ring, uint32_t entries, uint32_t first, struct kvm_dirty_gfn *taken,
                               uint32_t room)
{
    uint32_t count = 0;
    while (count < room) {
        struct kvm_dirty_gfn *entry = &ring[(first + count) % entries];
        if (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
            break;
        taken[count].flags = KVM_DIRTY_GFN_F_DIRTY;
        taken[count].slot = entry->slot;
        taken[count].offset = entry->offset;
        __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        count++;
    }
    return count;
}

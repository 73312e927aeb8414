/* A driver and a device, each a thread that waits until it is notified, pass chains through cdefs/virtqueue.c as fast
 * as they can: a barrier that is missing shows as a notification that never comes, or as a chain read too early.
 * Arguments: chains to pass, whether with EVENT_IDX.  Ends with 0, or with a sentence and 1. */
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "virtqueue.h"

#define SIZE 8
#define PATIENCE 20 /* Seconds. */
#define RAM_SIZE 0x4000
#define DRIVER 0x1000
#define DEVICE 0x2000
#define BUFFERS 0x3000

struct descriptor { uint64_t address; uint32_t length; uint16_t flags; uint16_t next; };

static _Alignas(4096) uint8_t ram[RAM_SIZE];
static uint8_t dirty[RAM_SIZE / 4096];
static struct kvmpy_region region = {0, RAM_SIZE, ram, dirty};
static struct kvmpy_virtqueue queue = {.regions = &region, .region_count = 1, .chain_limit = SIZE};
static int kicked, interrupted;
static uint32_t total;
static int event_idx;

static uint16_t *at(uint64_t address)
{
    return (uint16_t *)(ram + address);
}

static void give_up(const char *message)
{
    printf("%s\n", message);
    exit(1);
}

/* What an eventfd is, without the system call that would keep the two sides apart in time. */
static void ring(int *bell)
{
    __atomic_store_n(bell, 1, __ATOMIC_RELEASE);
}

static void wait_for(int *bell, const char *message)
{
    time_t until = time(NULL) + PATIENCE;
    for (uint32_t turns = 0; !__atomic_exchange_n(bell, 0, __ATOMIC_ACQUIRE); turns++) {
        if (turns % 1024 == 1023) {
            sched_yield();
            if (time(NULL) > until)
                give_up(message);
        }
    }
}

static void *device(void *unused)
{
    struct kvmpy_chain chains[SIZE];
    struct kvmpy_segment segments[SIZE];
    struct kvmpy_used used[SIZE];
    uint32_t done = 0;
    int by_ourselves = 0;
    while (done < total) {
        int count = kvmpy_virtqueue_pop(&queue, chains, 3, segments, SIZE);
        if (count < 0)
            give_up("the queue is broken");
        for (int i = 0; i < count; i++) {
            uint32_t value;
            memcpy(&value, segments[i].host, 4);
            if (value != done + i)
                give_up("a chain was read before it was written");
            used[i] = (struct kvmpy_used){chains[i].index, chains[i].generation, value & 0xff};
        }
        done += count;
        if (count) {
            kvmpy_virtqueue_push(&queue, used, count);
            if (kvmpy_virtqueue_wants_interrupt(&queue))
                ring(&interrupted);
        }
        /* A batch that is not full says that the queue is empty, as one of none does; both are relied on in turn. */
        if (count == 3 || (count && done % 4) || done == total)
            continue;
        if (by_ourselves && kvmpy_virtqueue_enable_notifications(&queue))
            continue;
        wait_for(&kicked, "the device was not notified of a chain");
        by_ourselves = done % 2;
        if (by_ourselves)
            kvmpy_virtqueue_disable_notifications(&queue);
    }
    return unused;
}

static void driver(void)
{
    uint16_t reaped = 0;
    uint32_t added = 0, got = 0;
    while (got < total) {
        uint16_t old = added;
        while (added < total && added - got < 1 + got % SIZE) {
            uint32_t slot = added % SIZE;
            memcpy(ram + BUFFERS + 8 * slot, &added, 4);
            *at(DRIVER + 4 + 2 * slot) = slot;
            added++;
        }
        __atomic_store_n(at(DRIVER + 2), (uint16_t)added, __ATOMIC_RELEASE);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        int kick;
        if (event_idx) {
            uint16_t event = __atomic_load_n(at(DEVICE + 4 + 8 * SIZE), __ATOMIC_RELAXED);
            kick = (uint16_t)(added - event - 1) < (uint16_t)(added - old);
        } else {
            kick = !(__atomic_load_n(at(DEVICE), __ATOMIC_RELAXED) & 1);
        }
        if (kick)
            ring(&kicked);

        /* Asks for an interrupt of the next, and waits if there is still none. */
        if (event_idx)
            __atomic_store_n(at(DRIVER + 4 + 2 * SIZE), reaped, __ATOMIC_RELAXED);
        else
            __atomic_store_n(at(DRIVER), 0, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        uint16_t index;
        while ((index = __atomic_load_n(at(DEVICE + 2), __ATOMIC_ACQUIRE)) == reaped)
            wait_for(&interrupted, "the driver had no interrupt for a chain");
        if (!event_idx)
            __atomic_store_n(at(DRIVER), 1, __ATOMIC_RELAXED);
        while (reaped != index) {
            uint32_t element[2];
            memcpy(element, ram + DEVICE + 4 + 8 * (reaped % SIZE), 8);
            if (element[0] != got % SIZE || element[1] != (got & 0xff))
                give_up("a used element was read before it was written");
            reaped++;
            got++;
        }
    }
}

int main(int argc, char **argv)
{
    pthread_t thread;
    if (argc != 3)
        return 2;
    total = strtoul(argv[1], NULL, 10);
    event_idx = atoi(argv[2]);
    kvmpy_virtqueue_reset(&queue);
    queue.event_idx = event_idx;
    queue.driver = DRIVER;
    queue.device = DEVICE;
    for (int i = 0; i < SIZE; i++) {
        struct descriptor entry = {BUFFERS + 8 * i, 4, 0, 0};
        memcpy(ram + sizeof entry * i, &entry, sizeof entry);
    }
    if (kvmpy_virtqueue_start(&queue) != 0)
        give_up("the queue did not start");
    pthread_create(&thread, NULL, device, NULL);
    driver();
    pthread_join(thread, NULL);
    return 0;
}

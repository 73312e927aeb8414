/* Runs hostile rings through cdefs/virtqueue.c, for a build with sanitizers: cases on standard input, as
 * test_queue_core.py writes them.  Guest RAM, the dirty map and the arrays are each an allocation of their own, so
 * that one byte too far is seen.  Prints how many chains were taken and how often a queue was found broken.
 *
 * With an argument it reads one byte too far itself, to show that this would be seen. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "virtqueue.h"

#define LOW_SIZE 0x2000
#define HIGH_START 0x100000000ULL
#define HIGH_SIZE 0x1000
#define LIMIT 16

/* Before each pop: `length` bytes of `value` at `offset` in low RAM, and what else the device does. */
struct step { uint16_t length; uint16_t actions; uint32_t offset; uint64_t value; };
enum { DISABLE = 1, ENABLE = 2, PUSH_HALF = 4 };

struct test_case {
    uint64_t descriptors, driver, device;
    uint32_t size, event_idx, indirect, steps;
    uint8_t low[LOW_SIZE];
};

static uint64_t seen; /* Keeps reads from being left out. */

static void use(const struct kvmpy_virtqueue *queue, const struct kvmpy_segment *segment)
{
    uint8_t *host = kvmpy_region_host(queue->regions, queue->region_count, segment->address, segment->length);
    if (host != segment->host)
        abort();
    if (!segment->flags) {
        for (uint32_t i = 0; i < segment->length; i++)
            seen += host[i];
        return;
    }
    memset(host, 0xa5, segment->length);
    if (kvmpy_region_mark_dirty(queue->regions, queue->region_count, segment->address, segment->length) != 0)
        abort();
}

int main(int argc, char **argv)
{
    struct test_case *test = malloc(sizeof *test);
    uint8_t *low = aligned_alloc(4096, LOW_SIZE), *high = aligned_alloc(4096, HIGH_SIZE);
    uint8_t *low_dirty = calloc(LOW_SIZE / 4096, 1), *high_dirty = calloc(HIGH_SIZE / 4096, 1);
    struct kvmpy_chain *chains = malloc(sizeof *chains * 5);
    struct kvmpy_segment *segments = malloc(sizeof *segments * LIMIT);
    struct kvmpy_used *used = malloc(sizeof *used * 5);
    struct kvmpy_region *regions = malloc(sizeof *regions * 2);
    uint64_t taken = 0, broken = 0;

    if (argc > 1) {
        (void)argv;
        printf("%d\n", high_dirty[HIGH_SIZE / 4096]);
        return 0;
    }
    regions[0] = (struct kvmpy_region){0, LOW_SIZE, low, low_dirty};
    regions[1] = (struct kvmpy_region){HIGH_START, HIGH_SIZE, high, high_dirty};
    memset(high, 0, HIGH_SIZE);
    while (fread(test, sizeof *test, 1, stdin) == 1) {
        struct kvmpy_virtqueue *queue = calloc(1, sizeof *queue);
        queue->regions = regions;
        queue->region_count = 2;
        queue->chain_limit = LIMIT;
        kvmpy_virtqueue_reset(queue);
        memcpy(low, test->low, LOW_SIZE);
        queue->size = test->size;
        queue->event_idx = test->event_idx;
        queue->indirect = test->indirect;
        queue->descriptors = test->descriptors;
        queue->driver = test->driver;
        queue->device = test->device;
        kvmpy_virtqueue_start(queue);
        for (uint32_t i = 0; i < test->steps; i++) {
            struct step step;
            if (fread(&step, sizeof step, 1, stdin) != 1)
                return 1;
            memcpy(low + step.offset % (LOW_SIZE - 8), &step.value, step.length);
            if (step.actions & DISABLE)
                kvmpy_virtqueue_disable_notifications(queue);
            if (step.actions & ENABLE)
                kvmpy_virtqueue_enable_notifications(queue);
            int count = kvmpy_virtqueue_pop(queue, chains, 5, segments, LIMIT);
            const struct kvmpy_segment *segment = segments;
            for (int chain = 0; chain < count; chain++) {
                for (uint32_t part = 0; part < chains[chain].readable + chains[chain].writable; part++)
                    use(queue, segment++);
                used[chain] = (struct kvmpy_used){chains[chain].index, chains[chain].generation, 0};
            }
            if (count > 0) {
                taken += count;
                kvmpy_virtqueue_push(queue, used, step.actions & PUSH_HALF ? count / 2 : count);
            }
            kvmpy_virtqueue_wants_interrupt(queue);
        }
        broken += queue->errors;
        free(queue);
    }
    printf("%llu %llu\n", (unsigned long long)taken, (unsigned long long)broken);
    free(regions);
    free(used);
    free(segments);
    free(chains);
    free(high_dirty);
    free(low_dirty);
    free(high);
    free(low);
    free(test);
    return seen == UINT64_MAX;
}

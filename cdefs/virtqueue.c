/* The device's side of a split virtqueue (virtio 1.2, 2.7).
 *
 * The rings belong to the guest, which writes to them while we read.  So whatever is read from them is read once, into
 * a variable of ours, and checked there; whatever is an address is looked up in the table of regions.  The guest is
 * x86: its numbers are ours.
 *
 * One thread at a time may use a queue; the other side is the guest's processors. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "virtqueue.h"

#define VIRTQ_DESC_F_NEXT 1
#define VIRTQ_DESC_F_WRITE 2
#define VIRTQ_DESC_F_INDIRECT 4
#define VIRTQ_AVAIL_F_NO_INTERRUPT 1
#define VIRTQ_USED_F_NO_NOTIFY 1

#define QUEUE_SIZE_MAX 32768
#define CHAIN_LENGTH_MAX (1ULL << 32) /* 2.7.4.2 */
#define PAGE_SHIFT 12
#define NEVER_ARMED 0x10000

struct descriptor { uint64_t address; uint32_t length; uint16_t flags; uint16_t next; };
struct used_element { uint32_t index; uint32_t length; };

/* Offsets in the rings. */
enum { AVAIL_FLAGS = 0, AVAIL_INDEX = 2, AVAIL_RING = 4 };
enum { USED_FLAGS = 0, USED_INDEX = 2, USED_RING = 4 };

static uint16_t load16(const uint8_t *place)
{
    return __atomic_load_n((const uint16_t *)place, __ATOMIC_RELAXED);
}

static void store16(uint8_t *place, uint16_t value)
{
    __atomic_store_n((uint16_t *)place, value, __ATOMIC_RELAXED);
}

/* --- guest memory */

static const struct kvmpy_region *region_of(const struct kvmpy_region *regions, uint32_t count, uint64_t address,
                                            uint64_t length)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct kvmpy_region *region = &regions[i];
        if (address >= region->start && length <= region->size &&
            address - region->start <= region->size - length)
            return region;
    }
    return NULL;
}

/* Where `length` bytes at guest address `address` are on the host, or NULL when they are not all RAM. */
uint8_t *kvmpy_region_host(const struct kvmpy_region *regions, uint32_t count, uint64_t address, uint64_t length)
{
    const struct kvmpy_region *region = region_of(regions, count, address, length);
    return region ? region->host + (address - region->start) : NULL;
}

static void mark(uint8_t *dirty, uint64_t offset, uint64_t length)
{
    for (uint64_t page = offset >> PAGE_SHIFT; page <= (offset + length - 1) >> PAGE_SHIFT; page++)
        __atomic_store_n(&dirty[page], 1, __ATOMIC_RELAXED);
}

/* Notes that the host wrote `length` bytes at guest address `address`: 0, or -1 when they are not all RAM. */
int kvmpy_region_mark_dirty(const struct kvmpy_region *regions, uint32_t count, uint64_t address, uint64_t length)
{
    const struct kvmpy_region *region = region_of(regions, count, address, length);
    if (!region)
        return -1;
    if (length)
        mark(region->dirty, address - region->start, length);
    return 0;
}

/* --- the life of a queue */

static int fail(struct kvmpy_virtqueue *queue, uint32_t wrong, uint64_t at)
{
    queue->wrong = wrong;
    queue->wrong_at = at;
    queue->errors++;
    return -(int)wrong;
}

/* Finds the rings on the host, after the owner set their addresses: 0, or minus what is wrong with them.  Until it has
 * said 0 there is nothing to take and nothing is given back. */
int kvmpy_virtqueue_start(struct kvmpy_virtqueue *queue)
{
    uint32_t size = queue->size;
    queue->host_descriptors = queue->host_driver = queue->host_device = NULL;
    if (size == 0 || size > QUEUE_SIZE_MAX || size > queue->chain_limit || (size & (size - 1)))
        return fail(queue, KVMPY_VIRTQUEUE_SIZE, size);
    uint64_t used_length = USED_RING + sizeof(struct used_element) * size + 2;
    const struct kvmpy_region *region =
        region_of(queue->regions, queue->region_count, queue->device, used_length);
    uint8_t *descriptors = kvmpy_region_host(queue->regions, queue->region_count, queue->descriptors,
                                             sizeof(struct descriptor) * size);
    uint8_t *driver = kvmpy_region_host(queue->regions, queue->region_count, queue->driver, AVAIL_RING + 2 * size + 2);
    if (!descriptors || queue->descriptors % 16)
        return fail(queue, KVMPY_VIRTQUEUE_DESCRIPTORS_PLACE, queue->descriptors);
    if (!driver || queue->driver % 2)
        return fail(queue, KVMPY_VIRTQUEUE_DRIVER_PLACE, queue->driver);
    if (!region || queue->device % 4)
        return fail(queue, KVMPY_VIRTQUEUE_DEVICE_PLACE, queue->device);
    queue->host_descriptors = descriptors;
    queue->host_driver = driver;
    queue->device_offset = queue->device - region->start;
    queue->host_device = region->host + queue->device_offset;
    queue->device_dirty = region->dirty;
    queue->armed_at = NEVER_ARMED;
    queue->wrong = 0;
    return 0;
}

/* Back to the beginning; chains that are in flight are of an older generation now, and pushing them does nothing. */
void kvmpy_virtqueue_reset(struct kvmpy_virtqueue *queue)
{
    queue->size = queue->chain_limit;
    queue->event_idx = queue->indirect = 0;
    queue->notifications = 1;
    queue->descriptors = queue->driver = queue->device = 0;
    queue->next_available = queue->next_used = 0;
    queue->in_flight = queue->unsignalled = 0;
    queue->generation++;
    queue->drained = 0;
    queue->wrong = 0;
    queue->host_descriptors = queue->host_driver = queue->host_device = NULL;
}

/* --- chains from the driver */

/* How many chains wait; acquires what the driver wrote before it published them. */
static int available(struct kvmpy_virtqueue *queue)
{
    uint16_t index = __atomic_load_n((const uint16_t *)(queue->host_driver + AVAIL_INDEX), __ATOMIC_ACQUIRE);
    uint16_t count = index - queue->next_available;
    /* A driver has no more chains than descriptors, those that we hold included. */
    if (count + queue->in_flight > queue->size)
        return fail(queue, KVMPY_VIRTQUEUE_AHEAD, index);
    return count;
}

static void store_device(struct kvmpy_virtqueue *queue, uint64_t offset, uint16_t value)
{
    store16(queue->host_device + offset, value);
    mark(queue->device_dirty, queue->device_offset + offset, 2);
}

/* After an empty ring: makes the driver notify of the next chain, and looks once more, since one may have come before
 * the driver could know.  How many chains wait. */
static int arm(struct kvmpy_virtqueue *queue)
{
    /* With flags in place of events, it is asked to notify of each. */
    if (!queue->notifications || !queue->event_idx || queue->armed_at == queue->next_available)
        return 0;
    store_device(queue, USED_RING + sizeof(struct used_element) * queue->size, queue->next_available);
    queue->armed_at = queue->next_available;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return available(queue);
}

/* Follows the chain that begins with descriptor `index` into `segments`, which has room for `room`: 0, or minus what is
 * wrong, noted in the queue.  With too little room, and then only, `*full` is set and 0 returned. */
static int walk(struct kvmpy_virtqueue *queue, uint32_t index, struct kvmpy_chain *chain,
                struct kvmpy_segment *segments, uint32_t room, int *full)
{
    const uint8_t *table = queue->host_descriptors;
    uint32_t entries = queue->size, count = 0;
    int nested = 0;

    for (;;) {
        struct descriptor entry;
        if (index >= entries)
            return fail(queue, KVMPY_VIRTQUEUE_INDEX, index);
        /* A table of the driver's may lie at any address; the barrier keeps this the only look at it. */
        memcpy(&entry, table + sizeof entry * index, sizeof entry);
        __asm__ volatile("" : : : "memory");

        if (entry.length == 0)
            return fail(queue, KVMPY_VIRTQUEUE_EMPTY_PART, index);
        uint8_t *host = kvmpy_region_host(queue->regions, queue->region_count, entry.address, entry.length);
        if (!host)
            return fail(queue, KVMPY_VIRTQUEUE_PART_PLACE, entry.address);
        if (entry.flags & VIRTQ_DESC_F_INDIRECT) {
            if (nested || !queue->indirect || (entry.flags & VIRTQ_DESC_F_NEXT) || entry.length % sizeof entry)
                return fail(queue, KVMPY_VIRTQUEUE_INDIRECT, index);
            table = host;
            entries = entry.length / sizeof entry;
            index = 0;
            nested = 1;
            continue;
        }
        /* A loop ends here too. */
        if (count == queue->chain_limit)
            return fail(queue, KVMPY_VIRTQUEUE_PARTS, count + 1);
        if (count == room) {
            *full = 1;
            return 0;
        }
        if (entry.flags & VIRTQ_DESC_F_WRITE) {
            chain->writable++;
            chain->writable_length += entry.length;
        } else if (chain->writable) {
            return fail(queue, KVMPY_VIRTQUEUE_ORDER, index);
        } else {
            chain->readable++;
            chain->readable_length += entry.length;
        }
        segments[count++] = (struct kvmpy_segment){
            .address = entry.address,
            .length = entry.length,
            .flags = entry.flags & VIRTQ_DESC_F_WRITE,
            .host = host,
        };
        if (chain->readable_length + chain->writable_length > CHAIN_LENGTH_MAX)
            return fail(queue, KVMPY_VIRTQUEUE_LENGTH, chain->readable_length + chain->writable_length);
        if (!(entry.flags & VIRTQ_DESC_F_NEXT))
            return 0;
        index = entry.next;
    }
}

/* Takes the next chains, as many as there is room for, their segments one after the other: how many, or minus what is
 * wrong.  What is wrong with a chain behind others is said by the next call.  `segments` needs room for at least
 * `chain_limit`.  `drained` tells whether an empty ring ended it; the driver notifies then of what comes next, unless
 * notifications are disabled. */
int kvmpy_virtqueue_pop(struct kvmpy_virtqueue *queue, struct kvmpy_chain *chains, uint32_t chain_room,
                        struct kvmpy_segment *segments, uint32_t segment_room)
{
    uint32_t taken = 0, used = 0;
    int waiting = 0;

    queue->drained = 0;
    if (queue->wrong)
        return -(int)queue->wrong;
    if (!queue->host_driver)
        return 0;
    while (taken < chain_room) {
        if (waiting == 0) {
            waiting = available(queue);
            if (waiting == 0)
                waiting = arm(queue);
            if (waiting == 0) {
                queue->drained = 1;
                break;
            }
            if (waiting < 0)
                break;
        }
        uint32_t slot = queue->next_available & (queue->size - 1);
        struct kvmpy_chain chain = {
            .index = load16(queue->host_driver + AVAIL_RING + 2 * slot),
            .generation = queue->generation,
        };
        int full = 0;
        if (walk(queue, chain.index, &chain, segments + used, segment_room - used, &full) < 0 || full)
            break;
        used += chain.readable + chain.writable;
        chains[taken++] = chain;
        queue->next_available++;
        queue->in_flight++;
        waiting--;
    }
    queue->popped += taken;
    return taken == 0 && queue->wrong ? -(int)queue->wrong : (int)taken;
}

/* --- chains back to the driver */

/* Gives `count` chains back, published together: how many.  Chains of an older generation are left out, as is one more
 * than are in flight. */
uint32_t kvmpy_virtqueue_push(struct kvmpy_virtqueue *queue, const struct kvmpy_used *used, uint32_t count)
{
    uint32_t done = 0;
    if (!queue->host_device)
        return 0;
    for (uint32_t i = 0; i < count && done < queue->in_flight; i++) {
        if (used[i].generation != queue->generation)
            continue;
        uint32_t slot = (uint16_t)(queue->next_used + done) & (queue->size - 1);
        uint64_t offset = USED_RING + sizeof(struct used_element) * slot;
        struct used_element *element = (struct used_element *)(queue->host_device + offset);
        __atomic_store_n(&element->index, used[i].index, __ATOMIC_RELAXED);
        __atomic_store_n(&element->length, used[i].written, __ATOMIC_RELAXED);
        mark(queue->device_dirty, queue->device_offset + offset, sizeof *element);
        done++;
    }
    if (done) {
        queue->next_used += done;
        queue->in_flight -= done;
        queue->unsignalled += done;
        queue->pushed += done;
        /* What was written into the chains and the ring comes before the index that shows it. */
        __atomic_store_n((uint16_t *)(queue->host_device + USED_INDEX), queue->next_used, __ATOMIC_RELEASE);
        mark(queue->device_dirty, queue->device_offset + USED_INDEX, 2);
    }
    return done;
}

/* Whether the driver wants an interrupt for what was pushed since this was last asked (2.7.7, 2.7.8). */
int kvmpy_virtqueue_wants_interrupt(struct kvmpy_virtqueue *queue)
{
    uint32_t count = queue->unsignalled;
    int wanted;
    if (count == 0 || !queue->host_driver)
        return 0;
    queue->unsignalled = 0;
    /* The driver writes what it wants and then looks at the used index; we do it the other way round. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (queue->event_idx) {
        uint16_t event = load16(queue->host_driver + AVAIL_RING + 2 * queue->size);
        wanted = count > 0xffff || (uint16_t)(queue->next_used - event - 1) < count;
    } else {
        wanted = !(load16(queue->host_driver + AVAIL_FLAGS) & VIRTQ_AVAIL_F_NO_INTERRUPT);
    }
    if (wanted)
        queue->interrupts++;
    else
        queue->interrupts_saved++;
    return wanted;
}

/* --- notifications from the driver */

/* Asks the driver not to notify of new chains (2.7.10); with EVENT_IDX the event stays behind, which says the same. */
void kvmpy_virtqueue_disable_notifications(struct kvmpy_virtqueue *queue)
{
    queue->notifications = 0;
    if (queue->host_device && !queue->event_idx)
        store_device(queue, USED_FLAGS, VIRTQ_USED_F_NO_NOTIFY);
}

/* Asks the driver to notify of the next chain: how many chains came before it could know, or minus what is wrong. */
int kvmpy_virtqueue_enable_notifications(struct kvmpy_virtqueue *queue)
{
    queue->notifications = 1;
    if (queue->wrong)
        return -(int)queue->wrong;
    if (!queue->host_device)
        return 0;
    if (queue->event_idx) {
        queue->armed_at = NEVER_ARMED;
        return arm(queue);
    }
    store_device(queue, USED_FLAGS, 0);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return available(queue);
}

/* The device's side of a split virtqueue (virtio 1.2, 2.7), for cffi and for C that takes chains straight from a queue;
 * virtqueue.c says what each function does. */

/* A run of guest RAM: its guest address, its size in bytes, where it is mapped, and a byte of `dirty` for each page. */
struct kvmpy_region { uint64_t start; uint64_t size; uint8_t *host; uint8_t *dirty; };

/* A part of a chain, checked to be RAM; `flags` is VIRTQ_DESC_F_WRITE or 0. */
struct kvmpy_segment { uint64_t address; uint32_t length; uint32_t flags; uint8_t *host; };

/* A chain: its head, the queue's generation when it was taken, and how many segments and bytes of each kind it has. */
struct kvmpy_chain {
    uint32_t index;
    uint32_t generation;
    uint32_t readable;
    uint32_t writable;
    uint64_t readable_length;
    uint64_t writable_length;
};

/* A chain that goes back to the driver. */
struct kvmpy_used { uint32_t index; uint32_t generation; uint32_t written; };

/* What a driver can do wrong; `wrong_at` of the queue has the index, address or number that it did it with. */
enum {
    KVMPY_VIRTQUEUE_SIZE = 1,
    KVMPY_VIRTQUEUE_DESCRIPTORS_PLACE,
    KVMPY_VIRTQUEUE_DRIVER_PLACE,
    KVMPY_VIRTQUEUE_DEVICE_PLACE,
    KVMPY_VIRTQUEUE_AHEAD,
    KVMPY_VIRTQUEUE_INDEX,
    KVMPY_VIRTQUEUE_EMPTY_PART,
    KVMPY_VIRTQUEUE_PART_PLACE,
    KVMPY_VIRTQUEUE_INDIRECT,
    KVMPY_VIRTQUEUE_ORDER,
    KVMPY_VIRTQUEUE_PARTS,
    KVMPY_VIRTQUEUE_LENGTH,
};

struct kvmpy_virtqueue {
    /* Set by the owner. */
    const struct kvmpy_region *regions;
    uint32_t region_count;
    uint32_t chain_limit;  /* The most segments of a chain: the device's queue size (2.7.5.3.1). */
    uint32_t size;
    uint32_t event_idx;
    uint32_t indirect;
    uint32_t notifications;  /* Whether the driver is to notify of new chains. */
    uint64_t descriptors;  /* Guest addresses of the three rings. */
    uint64_t driver;
    uint64_t device;

    /* Where the queue is. */
    uint16_t next_available;
    uint16_t next_used;
    uint32_t in_flight;
    uint32_t unsignalled;  /* Chains pushed since kvmpy_virtqueue_wants_interrupt was asked. */
    uint32_t generation;
    uint32_t drained;  /* Whether the last pop ended because nothing more was available. */
    uint32_t wrong;
    uint64_t wrong_at;

    /* Counted since the queue was made; a reset leaves them alone. */
    uint64_t popped;
    uint64_t pushed;
    uint64_t interrupts;
    uint64_t interrupts_saved;
    uint64_t errors;

    /* The rings on the host, once kvmpy_virtqueue_start found them to be RAM. */
    uint8_t *host_descriptors;
    uint8_t *host_driver;
    uint8_t *host_device;
    uint8_t *device_dirty;  /* The dirty byte of the first page of the used ring's region. */
    uint64_t device_offset;
    uint32_t armed_at;
};

uint8_t *kvmpy_region_host(const struct kvmpy_region *regions, uint32_t count, uint64_t address, uint64_t length);
int kvmpy_region_mark_dirty(const struct kvmpy_region *regions, uint32_t count, uint64_t address, uint64_t length);
int kvmpy_virtqueue_start(struct kvmpy_virtqueue *queue);
void kvmpy_virtqueue_reset(struct kvmpy_virtqueue *queue);
int kvmpy_virtqueue_pop(struct kvmpy_virtqueue *queue, struct kvmpy_chain *chains, uint32_t chain_room,
                        struct kvmpy_segment *segments, uint32_t segment_room);
uint32_t kvmpy_virtqueue_push(struct kvmpy_virtqueue *queue, const struct kvmpy_used *used, uint32_t count);
int kvmpy_virtqueue_wants_interrupt(struct kvmpy_virtqueue *queue);
void kvmpy_virtqueue_disable_notifications(struct kvmpy_virtqueue *queue);
int kvmpy_virtqueue_enable_notifications(struct kvmpy_virtqueue *queue);

/* A ring of io_uring, for cffi; io_uring.c says what each does. */
struct kvmpy_completion { uint64_t id; int64_t result; };
struct kvmpy_ring;
struct kvmpy_ring *kvmpy_ring_open(unsigned int entries, int event_fd, int *error);
void kvmpy_ring_close(struct kvmpy_ring *ring);
int kvmpy_ring_prepare(struct kvmpy_ring *ring, int opcode, int fd, uint64_t address, uint32_t length, uint64_t offset,
                       uint32_t flags, uint64_t id);
int kvmpy_ring_submit(struct kvmpy_ring *ring, unsigned int wait_for);
int kvmpy_ring_reap(struct kvmpy_ring *ring, struct kvmpy_completion *completions, int room);

/* The hot path of a vCPU, for cffi; vcpu.c says what each does. */
int kvmpy_ioctl(int fd, unsigned long request, void *argument);
int kvmpy_ioctl_value(int fd, unsigned long request, unsigned long value);
int kvmpy_vcpu_run(int fd, struct kvm_run *run);
int kvmpy_kick_install(void);
int kvmpy_kick(int tid, struct kvm_run *run);
int64_t kvmpy_pio_write_loop(int fd, struct kvm_run *run, int64_t exits);
uint32_t kvmpy_dirty_ring_take(struct kvm_dirty_gfn *ring, uint32_t entries, uint32_t first, struct kvm_dirty_gfn *taken, uint32_t room);

/* What Python's os module lacks for disk images, for cffi; file.c says what each does. */
int kvmpy_fallocate(int fd, int mode, uint64_t offset, uint64_t length);
int kvmpy_direct_alignment(int fd);

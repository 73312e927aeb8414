/* Constants newer than the oldest headers that we build with (Linux 6.1, Debian 12).  They are kernel ABI, so their
 * values never change; whether the running kernel has the feature is asked with KVM_CHECK_EXTENSION. */
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif

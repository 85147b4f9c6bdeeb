/* Chance and the machine's clock, of one simulation.
 *
 * Everything in a process that asks the operating system for randomness (hash maps' keys, tokio's
 * select!, rand, identifiers) asks getrandom(3); everything that asks for the time asks
 * clock_gettime(3). The executable's own definitions win over libc's. With SEALANE_SIM_CHANCE set to a
 * number both are functions of that number and of how often this thread asked: a run can be repeated.
 * Without it they are the kernel's.
 *
 * The simulated time is tokio's and turmoil's, and is not seen here: this clock only has to run
 * forward, the same in every run.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int decided; /* 0: not yet, 1: the kernel's, 2: ours */
static uint64_t seed;
static __thread uint64_t asked;
static __thread uint64_t ticks;

static int ours(void) {
  if (decided == 0) {
    const char *s = getenv("SEALANE_SIM_CHANCE");
    seed = s ? strtoull(s, NULL, 10) : 0;
    decided = s ? 2 : 1;
  }
  return decided == 2;
}

/* SplitMix64. */
static uint64_t next(void) {
  uint64_t z = seed * 0xd1342543de82ef95ULL + ++asked * 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

ssize_t getrandom(void *buf, size_t len, unsigned int flags) {
  if (!ours()) return syscall(SYS_getrandom, buf, len, flags);
  unsigned char *out = buf;
  uint64_t word = 0;
  for (size_t i = 0; i < len; i++) {
    if (i % 8 == 0) word = next();
    out[i] = (unsigned char)(word >> (8 * (i % 8)));
  }
  return (ssize_t)len;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  if (!ours()) {
    long r = syscall(SYS_clock_gettime, clock, at);
    return (int)r;
  }
  uint64_t now = ++ticks * 1000;
  at->tv_sec = (time_t)(1767225600ULL + now / 1000000000ULL); /* 2026-01-01 */
  at->tv_nsec = (long)(now % 1000000000ULL);
  return 0;
}

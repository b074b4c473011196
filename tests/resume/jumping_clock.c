/* Loaded before libc: the program's wall clock jumps between a day ahead and a day behind, three
   times a second. Monotonic clocks are not changed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static int system_clock(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    return real(id, now);
}

static time_t jump(void) {
    struct timespec now;
    system_clock(CLOCK_MONOTONIC, &now);
    return now.tv_nsec / 333333334 % 2 ? 86400 : -86400;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int result = system_clock(id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}

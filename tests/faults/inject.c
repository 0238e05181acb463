/* Makes the k-th call that changes a file below a folder go wrong. Preloaded into a process (LD_PRELOAD), armed by it.

   cc -shared -fPIC -O2 inject.c -o inject.so -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { COUNT, KILL_BEFORE, KILL_AFTER, TORN, FAIL, SHORT };  /* in the order of sweep.py's MODES */

static char folder[4096];
static volatile long calls, chosen = -1;
static int what, number, lasting;

/* mode; the errno of FAIL and SHORT; whether all later calls fail, too */
void inject_arm(const char *path, long k, int mode, int error, int sticky) {
    strncpy(folder, path, sizeof folder - 1);
    calls = 0, chosen = k, what = mode, number = error, lasting = sticky;
}

long inject_calls(void) { return calls; }

static int inside(const char *path) {
    char whole[8192], here[4096];
    if (!folder[0] || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", here, path);
        path = whole;
    }
    return !strncmp(path, folder, strlen(folder));
}

static int opened_inside(int descriptor) {
    char link[64], path[4096];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return inside(path);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* What this call has to do: COUNT is nothing. */
static enum mode turn(void) {
    long k = __sync_add_and_fetch(&calls, 1);
    if (chosen <= 0 || !(k == chosen || (lasting && k > chosen))) return COUNT;
    if (what == KILL_BEFORE) die();
    if (what == FAIL || what == SHORT) errno = number;
    return what;
}

#define REAL(result, name, ...)                        \
    static result (*real)(__VA_ARGS__);                \
    if (!real) real = dlsym(RTLD_NEXT, name)

/* A call that is done or not: torn is as good as killed before it. */
#define WHOLE(ours, call)                              \
    if (!(ours)) return call;                          \
    enum mode m = turn();                              \
    if (m == TORN) die();                              \
    if (m == FAIL || m == SHORT) return -1;            \
    __auto_type result = call;                         \
    if (m == KILL_AFTER) die();                        \
    return result

/* A call that may be done by half. */
#define BYTES(ours, call, half)                        \
    if (!(ours)) return call;                          \
    enum mode m = turn();                              \
    if (m == FAIL) return -1;                          \
    if (m == TORN) { (void)!half; die(); }             \
    if (m == SHORT) { (void)!half; errno = number; return -1; } \
    __auto_type result = call;                         \
    if (m == KILL_AFTER) die();                        \
    return result

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    BYTES(opened_inside(fd), real(fd, data, n), real(fd, data, n / 2));
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    BYTES(opened_inside(fd), real(fd, data, n, at), real(fd, data, n / 2, at));
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    BYTES(opened_inside(fd), real(fd, parts, n), real(fd, parts, n / 2));
}
ssize_t copy_file_range(int in, off64_t *at, int out, off64_t *to, size_t n, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    BYTES(opened_inside(out), real(in, at, out, to, n, flags), real(in, at, out, to, n / 2, flags));
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t n) {
    REAL(ssize_t, "sendfile64", int, int, off64_t *, size_t);
    BYTES(opened_inside(out), real(out, in, at, n), real(out, in, at, n / 2));
}
int fsync(int fd) {
    REAL(int, "fsync", int);
    WHOLE(opened_inside(fd), real(fd));
}
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    WHOLE(opened_inside(fd), real(fd));
}
int ftruncate64(int fd, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    WHOLE(opened_inside(fd), real(fd, size));
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    WHOLE(inside(from) || inside(to), real(from, to));
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    WHOLE(inside(path), real(path));
}
int unlinkat(int at, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    WHOLE(at == AT_FDCWD ? inside(path) : opened_inside(at), real(at, path, flags));
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    WHOLE(inside(path), real(path));
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    WHOLE(inside(path), real(path, mode));
}
int chmod(const char *path, mode_t mode) {
    REAL(int, "chmod", const char *, mode_t);
    WHOLE(inside(path), real(path, mode));
}

#define OPENS(name)                                                                     \
    int name(const char *path, int flags, ...) {                                        \
        REAL(int, #name, const char *, int, ...);                                       \
        va_list more;                                                                   \
        va_start(more, flags);                                                          \
        mode_t mode = va_arg(more, mode_t);                                             \
        va_end(more);                                                                   \
        int changes = flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC);                  \
        WHOLE(changes && inside(path), real(path, flags, mode));                        \
    }
OPENS(open)
OPENS(open64)

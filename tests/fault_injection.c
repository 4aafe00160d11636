/* Preloaded into a study's processes: makes the N-th call that changes a folder fail, or kills the process there.
 *
 * Python's own calls, those of child processes, and those of libraries that aren't Python's (SafeTensors and tokenizers
 * write with Rust) all pass through libc. The N-th of all processes together is counted in a file that they map.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Bits of `operations`; in fault_injection.py in the same order. */
enum { OPEN = 1, WRITE = 2, FSYNC = 4, RENAME = 8, LINK = 16, UNLINK = 32, MKDIR = 64, FLOCK = 128, CLOSE = 256 };
static const char *const NAMES[] = {"open", "write", "fsync", "rename", "link", "unlink", "mkdir", "flock", "close"};

struct control { /* as fault_injection.py packs it */
    long long calls, target, error, forever, operations, hits, tracing;
    char root[512], trace[512], part[512], hit[1024];
};

static struct control *control;

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("FAULT_INJECTION");
    int file = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    control = mapped == MAP_FAILED ? NULL : mapped;
    syscall(SYS_close, file);
}

static void trace(long long number, int operation, const char *path) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%lld %s %s\n", number, NAMES[__builtin_ctz(operation)], path);
    int file = syscall(SYS_openat, AT_FDCWD, control->trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) return;
    syscall(SYS_write, file, line, length);
    syscall(SYS_close, file);
}

/* Whether this call, of an absolute path, is to fail, with errno set. A call that is to be killed at comes back as one
 * that fails, with *killed set: what is written is cut off first. */
static int fails(int operation, const char *path, int *killed) {
    size_t length = control ? strnlen(control->root, sizeof control->root) : 0;
    if (!length || strncmp(path, control->root, length) || path[length] != '/') return 0;
    if (!strstr(path + length, control->part)) return 0;
    long long number = __atomic_add_fetch(&control->calls, 1, __ATOMIC_SEQ_CST);
    if (control->tracing) trace(number, operation, path);
    if (!control->target || number < control->target || !(control->operations & operation)) return 0;
    long long hits = __atomic_fetch_add(&control->hits, 1, __ATOMIC_SEQ_CST);
    if (hits && !control->forever) return 0;
    if (!hits) snprintf(control->hit, sizeof control->hit, "%s %s", NAMES[__builtin_ctz(operation)], path);
    *killed = !control->error;
    errno = (int)control->error;
    return 1;
}

static int refuse(int killed) {
    if (killed) kill(getpid(), SIGKILL);
    return -1;
}

static const char *absolute(int folder, const char *path, char *buffer) {
    if (path[0] == '/') return path;
    char link[64];
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    if (length < 0) return "";
    snprintf(buffer + length, PATH_MAX - length, "/%s", path);
    return buffer;
}

static int fails_at(int operation, int folder, const char *path) {
    char buffer[PATH_MAX];
    int killed = 0;
    return control && fails(operation, absolute(folder, path, buffer), &killed) && refuse(killed);
}

/* Of a regular file that is open for writing. */
static int descriptor_fails(int operation, int file, int *killed) {
    if (!control || !control->root[0]) return 0;
    int kept = errno, flags = fcntl(file, F_GETFL);
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = flags < 0 || (flags & O_ACCMODE) == O_RDONLY && operation != FLOCK && operation != FSYNC
                         ? -1 : readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(operation, path, killed);
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int exists(int folder, const char *path) { return syscall(SYS_faccessat, folder, path, F_OK) == 0; }

#define OPENING(name, parameters, types, folder, ...) \
    int name parameters { \
        int mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, int); \
            va_end(rest); \
        } \
        if ((flags & O_ACCMODE) != O_RDONLY && fails_at(OPEN, folder, path)) return -1; \
        REAL(int, #name, types); \
        return real(__VA_ARGS__, flags, mode); \
    }
#define COMMA ,
OPENING(open, (const char *path, int flags, ...), const char * COMMA int COMMA ..., AT_FDCWD, path)
OPENING(open64, (const char *path, int flags, ...), const char * COMMA int COMMA ..., AT_FDCWD, path)
OPENING(openat, (int folder, const char *path, int flags, ...), int COMMA const char * COMMA int COMMA ..., folder,
        folder, path)
OPENING(openat64, (int folder, const char *path, int flags, ...), int COMMA const char * COMMA int COMMA ..., folder,
        folder, path)

/* Half of it is written before it fails: what follows must live with a file that is cut off. */
#define WRITING(result, name, parameters, types, half, ...) \
    result name parameters { \
        int killed = 0; \
        REAL(result, #name, types); \
        if (descriptor_fails(WRITE, file, &killed)) { \
            int error = errno; \
            half; \
            errno = error; \
            return refuse(killed); \
        } \
        return real(__VA_ARGS__); \
    }
WRITING(ssize_t, write, (int file, const void *data, size_t size), int COMMA const void * COMMA size_t,
        (void)!real(file, data, size / 2), file, data, size)
WRITING(ssize_t, writev, (int file, const struct iovec *data, int count), int COMMA const struct iovec * COMMA int,
        (void)!real(file, data, count / 2), file, data, count)
WRITING(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t offset),
        int COMMA const void * COMMA size_t COMMA off64_t, (void)!real(file, data, size / 2, offset), file, data, size,
        offset)
WRITING(ssize_t, sendfile, (int file, int from, off_t *offset, size_t size),
        int COMMA int COMMA off_t * COMMA size_t, (void)!real(file, from, offset, size / 2), file, from, offset, size)
WRITING(ssize_t, sendfile64, (int file, int from, off64_t *offset, size_t size),
        int COMMA int COMMA off64_t * COMMA size_t, (void)!real(file, from, offset, size / 2), file, from, offset, size)
WRITING(ssize_t, copy_file_range, (int from, off64_t *start, int file, off64_t *end, size_t size, unsigned flags),
        int COMMA off64_t * COMMA int COMMA off64_t * COMMA size_t COMMA unsigned,
        (void)!real(from, start, file, end, size / 2, flags), from, start, file, end, size, flags)
WRITING(int, ftruncate, (int file, off_t size), int COMMA off_t, (void)0, file, size)
WRITING(int, ftruncate64, (int file, off64_t size), int COMMA off64_t, (void)0, file, size)

#define ON_DESCRIPTOR(name, operation, parameters, types, before, ...) \
    int name parameters { \
        int killed = 0; \
        REAL(int, #name, types); \
        if (descriptor_fails(operation, file, &killed)) { \
            int error = errno; \
            before; \
            errno = error; \
            return refuse(killed); \
        } \
        return real(__VA_ARGS__); \
    }
ON_DESCRIPTOR(fsync, FSYNC, (int file), int, (void)0, file)
ON_DESCRIPTOR(fdatasync, FSYNC, (int file), int, (void)0, file)
ON_DESCRIPTOR(flock, FLOCK, (int file, int how), int COMMA int, if (how & LOCK_UN) return real(file, how), file, how)
ON_DESCRIPTOR(close, CLOSE, (int file), int, (void)real(file), file) /* which fails as on NFS: it is closed */

#define ON_PATH(name, operation, parameters, types, condition, folder, path, ...) \
    int name parameters { \
        if (control && (condition) && fails_at(operation, folder, path)) return -1; \
        REAL(int, #name, types); \
        return real(__VA_ARGS__); \
    }
ON_PATH(rename, RENAME, (const char *from, const char *to), const char * COMMA const char *, 1, AT_FDCWD, to, from, to)
ON_PATH(renameat, RENAME, (int first, const char *from, int second, const char *to),
        int COMMA const char * COMMA int COMMA const char *, 1, second, to, first, from, second, to)
ON_PATH(link, LINK, (const char *from, const char *to), const char * COMMA const char *, 1, AT_FDCWD, to, from, to)
ON_PATH(linkat, LINK, (int first, const char *from, int second, const char *to, int flags),
        int COMMA const char * COMMA int COMMA const char * COMMA int, 1, second, to, first, from, second, to, flags)
ON_PATH(unlink, UNLINK, (const char *path), const char *, exists(AT_FDCWD, path), AT_FDCWD, path, path)
ON_PATH(rmdir, UNLINK, (const char *path), const char *, exists(AT_FDCWD, path), AT_FDCWD, path, path)
ON_PATH(unlinkat, UNLINK, (int folder, const char *path, int flags), int COMMA const char * COMMA int,
        exists(folder, path), folder, path, folder, path, flags)
ON_PATH(mkdir, MKDIR, (const char *path, mode_t mode), const char * COMMA mode_t, !exists(AT_FDCWD, path), AT_FDCWD,
        path, path, mode)
ON_PATH(mkdirat, MKDIR, (int folder, const char *path, mode_t mode), int COMMA const char * COMMA mode_t,
        !exists(folder, path), folder, path, folder, path, mode)

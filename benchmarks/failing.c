/* A library that is loaded before the C library (LD_PRELOAD) and makes one call below a folder fail; failing.py builds it.

   The order of the day lies in a file that all processes map ($FAILING_ORDERS), so that decoding workers, which are
   programs of their own, count on where their parent stands. Without an order every call passes. fsync below the
   folder does nothing: what is tried is a call that fails, not a machine that loses its power. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define NAMES 4096
#define NAME 64

/* failing.py packs and reads it, field by field. */
struct orders {
    int64_t armed;  /* 0: every call passes */
    int64_t first;  /* the call that fails, counted from 1; 0: none does, and calls are counted */
    int64_t error;  /* its errno; 0: a write that takes half of its bytes */
    int64_t lasting;  /* whether every call behind it fails too */
    _Atomic int64_t count;  /* calls so far */
    _Atomic int64_t failed;  /* how many of them failed */
    char folder[1024];
    char names[NAMES][NAME];  /* "call name-of-file" of the first calls, and in the end of a name what fits */
};

static struct orders *orders;

__attribute__((constructor)) static void map_orders(void) {
    const char *place = getenv("FAILING_ORDERS");
    int file = place ? open(place, O_RDWR) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof(struct orders), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) orders = mapped;
}

/* The path of a call, whole: of `name` from `folder` (a descriptor or AT_FDCWD), or of an open file where it is NULL. */
static const char *whole(int folder, const char *name, char *path) {
    if (name && name[0] == '/') return name;
    char link[64];
    if (folder == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    if (name) snprintf(path + length, PATH_MAX - length, "/%s", name);
    return path;
}

/* 0: the call passes; -1: it fails, and errno is set; 1: it is to be cut short. */
static int fails(const char *call, int folder, const char *name) {
    if (!orders || !orders->armed) return 0;
    int before = errno;
    char place[PATH_MAX];
    const char *path = whole(folder, name, place);
    size_t length = strlen(orders->folder);
    if (!path || strncmp(path, orders->folder, length) || (path[length] != '/' && path[length])) {
        errno = before;
        return 0;
    }
    int64_t number = atomic_fetch_add(&orders->count, 1) + 1;
    if (number <= NAMES) {
        const char *last = strrchr(path, '/');
        snprintf(orders->names[number - 1], NAME, "%s %s", call, last ? last + 1 : path);
    }
    errno = before;
    /* A full disk lets go of what is removed, and takes locks. */
    int full = orders->error == ENOSPC || orders->error == EDQUOT;
    if (number != orders->first && full && (!strcmp(call, "remove") || !strcmp(call, "lock"))) return 0;
    if (!orders->first || (orders->lasting ? number < orders->first : number != orders->first)) return 0;
    atomic_fetch_add(&orders->failed, 1);
    if (!orders->error && !strcmp(call, "write")) return 1;
    errno = orders->error ? (int)orders->error : EIO;
    return -1;
}

static int below(int file) {
    char place[PATH_MAX];
    const char *path = orders && orders->armed ? whole(file, NULL, place) : NULL;
    return path && !strncmp(path, orders->folder, strlen(orders->folder));
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)
#define WRITES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))

#define OPEN(function) \
    int function(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        REAL(int, #function, const char *, int, ...); \
        return WRITES(flags) && fails("open", AT_FDCWD, path) ? -1 : real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function) \
    int function(int folder, const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        REAL(int, #function, int, const char *, int, ...); \
        return WRITES(flags) && fails("open", folder, path) ? -1 : real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(function) \
    FILE *function(const char *path, const char *mode) { \
        REAL(FILE *, #function, const char *, const char *); \
        return strpbrk(mode, "wa+") && fails("open", AT_FDCWD, path) ? NULL : real(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int file, const void *bytes, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    int how = fails("write", file, NULL);
    return how < 0 ? -1 : real(file, bytes, how ? (size + 1) / 2 : size);
}

#define PWRITE(function, offset) \
    ssize_t function(int file, const void *bytes, size_t size, offset at) { \
        REAL(ssize_t, #function, int, const void *, size_t, offset); \
        int how = fails("write", file, NULL); \
        return how < 0 ? -1 : real(file, bytes, how ? (size + 1) / 2 : size, at); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    int how = fails("write", file, NULL);
    return how < 0 ? -1 : real(file, parts, how ? (count + 1) / 2 : count);
}

ssize_t sendfile(int out, int in, off_t *at, size_t size) {
    REAL(ssize_t, "sendfile", int, int, off_t *, size_t);
    int how = fails("write", out, NULL);
    return how < 0 ? -1 : real(out, in, at, how ? (size + 1) / 2 : size);
}

#define ON_FILE(function, call) \
    int function(int file) { \
        REAL(int, #function, int); \
        return fails(call, file, NULL) ? -1 : below(file) ? 0 : real(file); \
    }
ON_FILE(fsync, "fsync")
ON_FILE(fdatasync, "fsync")

int ftruncate(int file, off_t size) {
    REAL(int, "ftruncate", int, off_t);
    return fails("truncate", file, NULL) ? -1 : real(file, size);
}
int ftruncate64(int file, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    return fails("truncate", file, NULL) ? -1 : real(file, size);
}
int truncate(const char *path, off_t size) {
    REAL(int, "truncate", const char *, off_t);
    return fails("truncate", AT_FDCWD, path) ? -1 : real(path, size);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return fails("rename", AT_FDCWD, to) ? -1 : real(from, to);
}
int renameat(int one, const char *from, int other, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return fails("rename", other, to) ? -1 : real(one, from, other, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return fails("mkdir", AT_FDCWD, path) ? -1 : real(path, mode);
}
int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    return fails("mkdir", folder, path) ? -1 : real(folder, path, mode);
}

int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    return fails("link", AT_FDCWD, to) ? -1 : real(from, to);
}
int linkat(int one, const char *from, int other, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    return fails("link", other, to) ? -1 : real(one, from, other, to, flags);
}
int symlink(const char *target, const char *path) {
    REAL(int, "symlink", const char *, const char *);
    return fails("link", AT_FDCWD, path) ? -1 : real(target, path);
}
int symlinkat(const char *target, int folder, const char *path) {
    REAL(int, "symlinkat", const char *, int, const char *);
    return fails("link", folder, path) ? -1 : real(target, folder, path);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    return fails("remove", AT_FDCWD, path) ? -1 : real(path);
}
int unlinkat(int folder, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    return fails("remove", folder, path) ? -1 : real(folder, path, flags);
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    return fails("remove", AT_FDCWD, path) ? -1 : real(path);
}

int chmod(const char *path, mode_t mode) {
    REAL(int, "chmod", const char *, mode_t);
    return fails("chmod", AT_FDCWD, path) ? -1 : real(path, mode);
}
int fchmod(int file, mode_t mode) {
    REAL(int, "fchmod", int, mode_t);
    return fails("chmod", file, NULL) ? -1 : real(file, mode);
}

int flock(int file, int how) {
    REAL(int, "flock", int, int);
    return how != LOCK_UN && fails("lock", file, NULL) ? -1 : real(file, how);
}

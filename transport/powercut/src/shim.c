/*
 * A disk that forgets, between a program and its files. Preloaded (LD_PRELOAD) by the tests.
 *
 * What it decides: which bytes and which names under POWERCUT_DATA would be there after a power cut now.
 * It keeps them in POWERCUT_SHADOW:
 *
 *   files/INODE   what fsync or fdatasync made durable of a file
 *   dirs/INODE    the names that fsync made durable in a directory: lines "f INODE NAME" or "d INODE NAME"
 *   keep/INODE    a hard link to each file of the above, so that no inode number is used twice
 *
 * Rules
 *  - A write reaches the shadow when the file is synced, a name when its directory is. sync_file_range is
 *    no sync: it moves neither the size nor the device's cache.
 *  - The first sync of a file in a process takes the whole file: what an earlier, killed process left
 *    unsynced in the page cache becomes durable then, and not before.
 *  - Nothing is synced for real: the promise under test is the shadow's.
 *
 * POWERCUT_FAULT names a file that the test may fill at any time with one line,
 *
 *   CLASS ERRNO once|ever [PART OF A PATH]
 *
 * CLASS is write (and ftruncate, fallocate, ...), sync, or open (for writing, mkdir, rename, unlink). The first write that
 * fails was done in half. A sync that fails drops what it should have made durable, as Linux does: a second one
 * through the same descriptor succeeds and has lost it.
 *
 * Every call of ours goes to the kernel directly, so that it does not come back here.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PATH_BYTES 4352
#define BUCKETS 1024
#define DESCRIPTORS 65536

typedef struct range {
    off_t from, to;
    struct range *next;
} range;

/* What this process wrote into a file since it was last synced. */
typedef struct file {
    ino_t inode;
    bool is_known; /* it was synced by this process before */
    range *dirty;
    unsigned failures; /* of its syncs */
    struct file *next;
} file;

static file *files[BUCKETS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static const char *data, *shadow, *fault;
static size_t data_len;
static bool was_torn;
/* Which of its file's failures a descriptor has reported: each does, once, as Linux has it since 4.13. */
static unsigned reported[DESCRIPTORS];

static void die(const char *what) {
    fprintf(stderr, "powercut shim: %s: %s\n", what, strerror(errno));
    abort();
}

static void start(void) {
    data = getenv("POWERCUT_DATA");
    shadow = getenv("POWERCUT_SHADOW");
    fault = getenv("POWERCUT_FAULT");
    data_len = data ? strlen(data) : 0;
}

/* Whether `path` is the directory under test or in it. */
static bool is_inside(const char *path) {
    pthread_once(&once, start);
    return data && !strncmp(path, data, data_len) && (path[data_len] == '/' || path[data_len] == 0);
}

/* Path of an open file under test, as it is called now. */
static bool path_of(int fd, char path[PATH_BYTES]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_BYTES - 1);
    if (n < 0) return false;
    path[n] = 0;
    return is_inside(path);
}

/* Absolute form of a path that a program gave. */
static bool path_at(int at, const char *name, char path[PATH_BYTES]) {
    if (name[0] == '/') {
        snprintf(path, PATH_BYTES, "%s", name);
        return is_inside(path);
    }
    char base[PATH_BYTES];
    if (at == AT_FDCWD) {
        if (syscall(SYS_getcwd, base, sizeof base) < 0) return false;
    } else if (!path_of(at, base)) {
        return false;
    }
    int n = snprintf(path, PATH_BYTES, "%s/%s", base, name);
    return n < PATH_BYTES && is_inside(path);
}

/* The error that the test wants for this call, or 0; one that comes once is spent if `spends`. With the lock held. */
static int fault_of(const char *class, const char *path, bool spends) {
    if (!fault) return 0;
    int fd = syscall(SYS_openat, AT_FDCWD, fault, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return 0;
    char line[512];
    ssize_t n = syscall(SYS_read, fd, line, sizeof line - 1);
    char want[16] = "", often[16] = "", part[256] = "";
    int error = 0;
    line[n > 0 ? n : 0] = 0;
    bool hits = n > 0 && sscanf(line, "%15s %d %15s %255s", want, &error, often, part) >= 3 &&
                !strcmp(want, class) && strstr(path, part);
    if (hits && spends && !strcmp(often, "once")) syscall(SYS_ftruncate, fd, (off_t)0);
    syscall(SYS_close, fd);
    return hits ? error : 0;
}

static file *file_of(ino_t inode) {
    file **at = &files[inode % BUCKETS];
    while (*at && (*at)->inode != inode) at = &(*at)->next;
    if (!*at) {
        *at = calloc(1, sizeof **at);
        if (!*at) die("memory");
        (*at)->inode = inode;
    }
    return *at;
}

static void forget_dirty(file *f) {
    while (f->dirty) {
        range *next = f->dirty->next;
        free(f->dirty);
        f->dirty = next;
    }
}

/* Notes that [from, to) of a file differs from what is durable. */
static void note(int fd, off_t from, off_t to) {
    struct stat s;
    if (fstat(fd, &s) || !S_ISREG(s.st_mode) || from >= to) return;
    file *f = file_of(s.st_ino);
    if (f->dirty && f->dirty->to == from) {
        f->dirty->to = to;
        return;
    }
    range *r = malloc(sizeof *r);
    if (!r) die("memory");
    *r = (range){from, to, f->dirty};
    f->dirty = r;
}

static void shadow_path(char out[PATH_BYTES], const char *kind, ino_t inode) {
    snprintf(out, PATH_BYTES, "%s/%s/%llu", shadow, kind, (unsigned long long)inode);
}

/* Copies what is dirty into the shadow. Called with the lock held. */
static void sync_file(int fd, const char *path, ino_t inode) {
    static char buffer[1 << 16];
    char to[PATH_BYTES], link[64];
    file *f = file_of(inode);
    shadow_path(to, "keep", inode);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    /* Fails where it exists, or where the file has no name left. */
    syscall(SYS_linkat, AT_FDCWD, link, AT_FDCWD, to, AT_SYMLINK_FOLLOW);
    shadow_path(to, "files", inode);
    int in = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
    int out = syscall(SYS_openat, AT_FDCWD, to, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (in < 0 || out < 0) die(path);
    range whole = {0, INT64_MAX, NULL};
    for (range *r = f->is_known ? f->dirty : &whole; r; r = r->next) {
        for (off_t at = r->from; at < r->to;) {
            size_t want = r->to - at > (off_t)sizeof buffer ? sizeof buffer : (size_t)(r->to - at);
            ssize_t n = syscall(SYS_pread64, in, buffer, want, at);
            if (n <= 0) break;
            if (syscall(SYS_pwrite64, out, buffer, (size_t)n, at) != n) die(to);
            at += n;
        }
    }
    struct stat s;
    if (fstat(in, &s) || syscall(SYS_ftruncate, out, s.st_size)) die(to);
    forget_dirty(f);
    f->is_known = true;
    syscall(SYS_close, in);
    syscall(SYS_close, out);
}

/* Makes the names of a directory durable. Called with the lock held. */
static void sync_dir(const char *path, ino_t inode) {
    char to[PATH_BYTES], beside[PATH_BYTES + 8];
    shadow_path(to, "dirs", inode);
    snprintf(beside, sizeof beside, "%s.tmp", to);
    int fd = syscall(SYS_openat, AT_FDCWD, beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    DIR *dir = opendir(path);
    if (fd < 0 || !dir) die(path);
    for (struct dirent *entry; (entry = readdir(dir));) {
        struct stat s;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (fstatat(dirfd(dir), entry->d_name, &s, AT_SYMLINK_NOFOLLOW)) continue;
        if (!S_ISREG(s.st_mode) && !S_ISDIR(s.st_mode)) continue;
        char line[512], keep[PATH_BYTES];
        int n = snprintf(line, sizeof line, "%c %llu %s\n", S_ISDIR(s.st_mode) ? 'd' : 'f',
                         (unsigned long long)s.st_ino, entry->d_name);
        if (syscall(SYS_write, fd, line, (size_t)n) != n) die(beside);
        shadow_path(keep, "keep", s.st_ino);
        if (S_ISREG(s.st_mode)) syscall(SYS_linkat, dirfd(dir), entry->d_name, AT_FDCWD, keep, 0);
    }
    closedir(dir);
    syscall(SYS_close, fd);
    if (syscall(SYS_renameat2, AT_FDCWD, beside, AT_FDCWD, to, 0)) die(to);
}

/* About that of a good card. Most kills then fall between a write and the end of its sync, as power cuts do. */
static const struct timespec sync_time = {0, 500 * 1000};

static int do_sync(int fd, int number) {
    char path[PATH_BYTES];
    if (!path_of(fd, path)) return syscall(number, fd);
    struct stat s;
    if (fstat(fd, &s)) return -1;
    nanosleep(&sync_time, NULL);
    pthread_mutex_lock(&lock);
    int error = fault_of("sync", path, true);
    file *f = file_of(s.st_ino);
    if (error) {
        forget_dirty(f);
        f->is_known = true;
        f->failures++;
    }
    if (fd < DESCRIPTORS && reported[fd] < f->failures) {
        reported[fd] = f->failures;
        error = error ? error : EIO;
    }
    if (error) {
        /* Nothing of it became durable. */
    } else if (shadow && S_ISREG(s.st_mode)) {
        sync_file(fd, path, s.st_ino);
    } else if (shadow && S_ISDIR(s.st_mode)) {
        sync_dir(path, s.st_ino);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return error ? -1 : 0;
}

int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }

/* Writes at `at`, or at the file's own position if that is negative. */
static ssize_t do_write(int fd, const struct iovec *v, int count, off_t at, int flags) {
    char path[PATH_BYTES];
    bool is_ours = path_of(fd, path);
    struct iovec half;
    if (is_ours) {
        pthread_mutex_lock(&lock);
        int error = fault_of("write", path, false);
        bool tears = error && !was_torn && count > 0 && v[0].iov_len > 1;
        if (error && !tears) fault_of("write", path, true);
        was_torn = tears;
        pthread_mutex_unlock(&lock);
        if (error && !tears) {
            errno = error;
            return -1;
        }
        if (tears) {
            half = (struct iovec){v[0].iov_base, v[0].iov_len / 2};
            v = &half;
            count = 1;
        }
    }
    ssize_t n = at < 0 ? syscall(SYS_writev, fd, v, count)
                       : syscall(SYS_pwritev2, fd, v, count, at, 0L, flags);
    if (n > 0 && is_ours) {
        int error = errno;
        off_t end = at < 0 ? syscall(SYS_lseek, fd, (off_t)0, SEEK_CUR) : at + n;
        pthread_mutex_lock(&lock);
        note(fd, end - n, end);
        pthread_mutex_unlock(&lock);
        errno = error;
    }
    return n;
}

static ssize_t write_one(int fd, const void *bytes, size_t len, off_t at) {
    struct iovec v = {(void *)bytes, len};
    return do_write(fd, &v, 1, at, 0);
}

ssize_t write(int fd, const void *bytes, size_t len) { return write_one(fd, bytes, len, -1); }
ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) { return write_one(fd, bytes, len, at); }
ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) { return write_one(fd, bytes, len, at); }
ssize_t writev(int fd, const struct iovec *v, int count) { return do_write(fd, v, count, -1, 0); }
ssize_t pwritev(int fd, const struct iovec *v, int count, off_t at) { return do_write(fd, v, count, at, 0); }
ssize_t pwritev64(int fd, const struct iovec *v, int count, off64_t at) { return do_write(fd, v, count, at, 0); }
ssize_t pwritev2(int fd, const struct iovec *v, int count, off_t at, int flags) {
    return do_write(fd, v, count, at, flags);
}
ssize_t pwritev64v2(int fd, const struct iovec *v, int count, off64_t at, int flags) {
    return do_write(fd, v, count, at, flags);
}

/* A program that copies file to file must use calls that are seen here. */
ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t len, unsigned flags) {
    char path[PATH_BYTES];
    if (path_of(out, path)) {
        errno = EXDEV;
        return -1;
    }
    return syscall(SYS_copy_file_range, in, in_at, out, out_at, len, flags);
}

/* Changes a size: everything from the smaller one on is another content. */
static int do_resize(int fd, off_t from, long number, long a, long b, long c) {
    char path[PATH_BYTES];
    if (!path_of(fd, path)) return syscall(number, fd, a, b, c);
    pthread_mutex_lock(&lock);
    int error = fault_of("write", path, true);
    int outcome = error ? -1 : syscall(number, fd, a, b, c);
    if (outcome && !error) error = errno;
    if (!outcome) note(fd, from, INT64_MAX);
    pthread_mutex_unlock(&lock);
    errno = error;
    return outcome;
}

int ftruncate(int fd, off_t len) { return do_resize(fd, len, SYS_ftruncate, len, 0, 0); }
int ftruncate64(int fd, off64_t len) { return do_resize(fd, len, SYS_ftruncate, len, 0, 0); }
int fallocate(int fd, int mode, off_t at, off_t len) { return do_resize(fd, at, SYS_fallocate, mode, at, len); }
int fallocate64(int fd, int mode, off64_t at, off64_t len) { return do_resize(fd, at, SYS_fallocate, mode, at, len); }
int posix_fallocate(int fd, off_t at, off_t len) { return fallocate(fd, 0, at, len) ? errno : 0; }
int posix_fallocate64(int fd, off64_t at, off64_t len) { return fallocate(fd, 0, at, len) ? errno : 0; }

/* Whether a change of names is to fail; `errno` says how. */
static bool is_refused(int at, const char *name) {
    char path[PATH_BYTES];
    if (!path_at(at, name, path)) return false;
    pthread_mutex_lock(&lock);
    int error = fault_of("open", path, true);
    pthread_mutex_unlock(&lock);
    if (error) errno = error;
    return error != 0;
}

static int do_open(int at, const char *name, int flags, mode_t mode) {
    bool changes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);
    if (changes && is_refused(at, name)) return -1;
    int fd = syscall(SYS_openat, at, name, flags, mode);
    char path[PATH_BYTES];
    struct stat s;
    if (fd >= 0 && path_of(fd, path) && !fstat(fd, &s)) {
        pthread_mutex_lock(&lock);
        if (flags & O_TRUNC) note(fd, 0, INT64_MAX);
        if (fd < DESCRIPTORS) reported[fd] = file_of(s.st_ino)->failures;
        pthread_mutex_unlock(&lock);
    }
    return fd;
}

#define MODE_AFTER(last)                                   \
    mode_t mode = 0;                                       \
    if ((last) & (O_CREAT | __O_TMPFILE)) {                \
        va_list rest;                                      \
        va_start(rest, last);                              \
        mode = va_arg(rest, mode_t);                       \
        va_end(rest);                                      \
    }

int open(const char *name, int flags, ...) {
    MODE_AFTER(flags)
    return do_open(AT_FDCWD, name, flags, mode);
}
int open64(const char *name, int flags, ...) {
    MODE_AFTER(flags)
    return do_open(AT_FDCWD, name, flags | O_LARGEFILE, mode);
}
int openat(int at, const char *name, int flags, ...) {
    MODE_AFTER(flags)
    return do_open(at, name, flags, mode);
}
int openat64(int at, const char *name, int flags, ...) {
    MODE_AFTER(flags)
    return do_open(at, name, flags | O_LARGEFILE, mode);
}
int mkdir(const char *name, mode_t mode) {
    return is_refused(AT_FDCWD, name) ? -1 : syscall(SYS_mkdirat, AT_FDCWD, name, mode);
}
int rename(const char *from, const char *to) {
    return is_refused(AT_FDCWD, to) ? -1 : syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int unlink(const char *name) {
    return is_refused(AT_FDCWD, name) ? -1 : syscall(SYS_unlinkat, AT_FDCWD, name, 0);
}

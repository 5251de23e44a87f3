/* A folder, $BARE_MOUNT, on a file system as bare as a mounted container may be: no locks, no hard links, no renames
 * from or to the outside, no fsync of folders; and nothing but reading for processes whose $RANK is not 0. Loaded with
 * LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int inside(const char *path) {
    const char *mount = getenv("BARE_MOUNT");
    char whole[4096];
    if (path[0] != '/') {
        if (!getcwd(whole, sizeof whole)) return 0;
        path = whole;
    }
    return mount && strncmp(path, mount, strlen(mount)) == 0;
}

static int open_inside(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

static int forbidden(const char *path) {
    const char *rank = getenv("RANK");
    return rank && strcmp(rank, "0") != 0 && inside(path);
}

#define OPEN(name)                                                                                      \
    int name(const char *path, int flags, ...) {                                                        \
        va_list rest;                                                                                   \
        va_start(rest, flags);                                                                          \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                         \
        va_end(rest);                                                                                   \
        if (flags & (O_WRONLY | O_RDWR | O_CREAT) && forbidden(path)) return errno = EROFS, -1;         \
        int (*real)(const char *, int, mode_t) = dlsym(RTLD_NEXT, #name);                               \
        return real(path, flags, mode);                                                                 \
    }
OPEN(open)
OPEN(open64)

#define FOPEN(name)                                                                                     \
    FILE *name(const char *path, const char *mode) {                                                    \
        if (strpbrk(mode, "wa+") && forbidden(path)) return errno = EROFS, (FILE *)NULL;                \
        FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, #name);                            \
        return real(path, mode);                                                                        \
    }
FOPEN(fopen)
FOPEN(fopen64)

int mkdir(const char *path, mode_t mode) {
    if (forbidden(path)) return errno = EROFS, -1;
    int (*real)(const char *, mode_t) = dlsym(RTLD_NEXT, "mkdir");
    return real(path, mode);
}

static int refused(int command) {
    return command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK ||
           command == F_OFD_SETLKW;
}

#define FCNTL(name)                                                           \
    int name(int fd, int command, ...) {                                      \
        va_list rest;                                                         \
        va_start(rest, command);                                              \
        void *argument = va_arg(rest, void *);                                \
        va_end(rest);                                                         \
        if (refused(command) && open_inside(fd)) return errno = ENOLCK, -1;   \
        int (*real)(int, int, void *) = dlsym(RTLD_NEXT, #name);              \
        return real(fd, command, argument);                                   \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

int flock(int fd, int operation) {
    if (open_inside(fd)) return errno = ENOLCK, -1;
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return real(fd, operation);
}

int rename(const char *from, const char *to) {
    if (inside(from) != inside(to)) return errno = EXDEV, -1;
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return real(from, to);
}

int link(const char *from, const char *to) {
    if (inside(from) || inside(to)) return errno = EPERM, -1;
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "link");
    return real(from, to);
}

int fsync(int fd) {
    struct stat found;
    if (open_inside(fd) && fstat(fd, &found) == 0 && S_ISDIR(found.st_mode)) return errno = EINVAL, -1;
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return real(fd);
}

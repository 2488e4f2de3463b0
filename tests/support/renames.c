/* Renames and removals as NFS may do them, for LD_PRELOAD (see test_reliability.py).

   LIES=n: every n-th rename is done and reported as failed, as when the answer of a server is lost and it is asked again.
   KEPT=name: files whose path contains it are kept as .nfs… when they are removed, as for a reader that has them open. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <unistd.h>

static int lie(int result) {
    static int calls;
    const char *every = getenv("LIES");
    if (result == 0 && every && ++calls % atoi(every) == 0) { errno = ENOENT; return -1; }
    return result;
}

int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return lie(real(from, to));
}

int renameat(int a, const char *from, int b, const char *to) {
    int (*real)(int, const char *, int, const char *) = dlsym(RTLD_NEXT, "renameat");
    return lie(real(a, from, b, to));
}

static int kept(int folder, const char *path) {
    static int number;
    char target[4096];
    const char *name = getenv("KEPT"), *slash = strrchr(path, '/');
    int (*real)(int, const char *, int, const char *) = dlsym(RTLD_NEXT, "renameat");
    if (!name || !strcmp(path, "")) return -1;
    if (strstr(path, ".nfs")) { errno = EBUSY; return 1; }
    if (!strstr(path, name)) return -1;
    snprintf(target, sizeof target, "%.*s.nfs%08d%d", slash ? (int)(slash - path + 1) : 0, path, ++number, getpid());
    return real(folder, path, folder, target);
}

int unlink(const char *path) {
    int (*real)(const char *) = dlsym(RTLD_NEXT, "unlink");
    int done = kept(AT_FDCWD, path);
    return done < 0 ? real(path) : -done;
}

int unlinkat(int folder, const char *path, int flags) {
    int (*real)(int, const char *, int) = dlsym(RTLD_NEXT, "unlinkat");
    int done = flags & AT_REMOVEDIR ? -1 : kept(folder, path);
    return done < 0 ? real(folder, path, flags) : -done;
}

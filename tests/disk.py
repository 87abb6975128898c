"""A disk that fails, for a process of its own: a library before the C library, under which real calls return errors."""

import errno
import os
import subprocess
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Whether the file's path contains $DISK_PATH, and $DISK_AFTER bytes of such files have been moved. */
static long moved = 0;
static int failing(int file, const char *calls, size_t size) {
  char link[64], path[4096];
  const char *part = getenv("DISK_PATH"), *kind = getenv("DISK_CALLS"), *after = getenv("DISK_AFTER");
  if (!part || !kind || strcmp(kind, calls)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  if (!strstr(path, part)) return 0;
  if (__sync_add_and_fetch(&moved, size) <= (after ? atol(after) : 0)) return 0;
  errno = atoi(getenv("DISK_ERRNO"));
  return 1;
}
#define CALL(name, calls, type, size, arguments, values) \
  ssize_t name arguments { \
    static ssize_t (*next) arguments; \
    if (!next) next = dlsym(RTLD_NEXT, #name); \
    return failing(file, calls, size) ? -1 : next values; \
  }
CALL(read, "read", void *, size, (int file, void *data, size_t size), (file, data, size))
CALL(pread, "read", void *, size, (int file, void *data, size_t size, off_t at), (file, data, size, at))
CALL(pread64, "read", void *, size, (int file, void *data, size_t size, off_t at), (file, data, size, at))
CALL(write, "write", void *, size, (int file, const void *data, size_t size), (file, data, size))
CALL(pwrite, "write", void *, size, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
CALL(pwrite64, "write", void *, size, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
static size_t total(const struct iovec *data, int count) {
  size_t size = 0;
  while (count--) size += data[count].iov_len;
  return size;
}
CALL(writev, "write", void *, total(data, count), (int file, const struct iovec *data, int count), (file, data, count))
"""


def failing_disk(
    folder: Path, path: str, *, calls: str = "read", error: int = errno.EIO, after: int = 0
) -> dict[str, str]:
    """Makes the environment of a process whose disk fails.

    Args:
      folder: where the library is built.
      path: what paths of files contain that fail.
      calls: `"read"` or `"write"`.
      error: the number of the error.
      after: bytes that are moved before the first failure.

    Returns:
      What the process's environment has besides.
    """
    library = folder / "disk.so"
    if not library.exists():
        (folder / "disk.c").write_text(SOURCE)
        command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", library, folder / "disk.c", "-ldl"]
        subprocess.run(command, check=True)
    return {
        "LD_PRELOAD": str(library),
        "DISK_PATH": path,
        "DISK_CALLS": calls,
        "DISK_ERRNO": str(error),
        "DISK_AFTER": str(after),
    }

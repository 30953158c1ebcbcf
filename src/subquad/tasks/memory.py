"""Keep the memory of freed tensors inside the process.

glibc gives large blocks back to the system as soon as they are freed and fetches them again, page
by page, at the next step of a training loop. On a CPU that is a good part of the time of a step.
"""

import ctypes
import platform

M_TRIM_THRESHOLD = -1  # from malloc.h
M_MMAP_THRESHOLD = -3
LARGEST = 2**31 - 1  # mallopt takes a C int
LARGEST_IN_OLD_GLIBC = 32 * 2**20  # older releases refuse a higher threshold for mmap


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next tensors; return whether that worked.

    For a program's start (the command line calls it), never for an import: it changes the whole
    process, which then holds on to the most memory it ever used. Elsewhere than on Linux with
    glibc it does nothing.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mmap_set = mallopt(M_MMAP_THRESHOLD, LARGEST) or mallopt(M_MMAP_THRESHOLD, LARGEST_IN_OLD_GLIBC)
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST)) and bool(mmap_set)

// Marks what the shared library exports; everything else in it is hidden.
#pragma once

#if defined(_WIN32)
#error "Kvik builds on POSIX systems only so far"
#else
#define KVIK_API __attribute__((visibility("default")))
#endif

// Marks what the shared library exports; everything else in it is hidden, and so
// is what an exported class keeps to itself.
#pragma once

#if defined(_WIN32)
#error "Kvik builds on POSIX systems only so far"
#else
#define KVIK_API __attribute__((visibility("default")))
#define KVIK_HIDDEN __attribute__((visibility("hidden")))
#endif

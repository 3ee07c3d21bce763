// The least that a test needs: say what failed and where, go on, and exit with a status.
#pragma once

#include <cstdio>

namespace test {

inline int failures = 0;

// After some failures of a sweep the rest would say the same.
inline bool check(bool ok, const char *expression, const char *file, int line) {
    if (!ok && ++failures <= 20) std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, expression);
    return ok;
}

inline int report(const char *name) {
    std::printf("%s: %s\n", name, failures == 0 ? "ok" : "FAILED");
    return failures != 0;
}

}  // namespace test

#define CHECK(expression) ::test::check(static_cast<bool>(expression), #expression, __FILE__, __LINE__)

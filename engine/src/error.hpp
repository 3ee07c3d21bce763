// How a reader refuses what it was given.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace mi {

// The bytes break spec/FORMAT.md; what() names the cause.
struct FormatError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Throws FormatError. A build without exceptions (for machines that have none, with the model in their own memory) says the
// cause and ends.
[[noreturn]] inline void refuse(const std::string &cause) {
#if defined(__cpp_exceptions)
    throw FormatError(cause);
#else
    std::fputs((cause + "\n").c_str(), stderr);
    std::abort();
#endif
}

}  // namespace mi

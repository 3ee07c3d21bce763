// Reading a file whole. Apart from the rest so that machines without files can do without it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

namespace mi {

// A file could not be opened or read; what() names it and the cause.
struct FileError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Bytes {
    std::unique_ptr<uint8_t[]> data;  // [size]
    size_t size = 0;
};

// The contents of a regular file. Throws FileError or std::bad_alloc.
Bytes read_file(const std::string &path);

}  // namespace mi

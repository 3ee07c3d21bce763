// A file's bytes. Apart from the rest so that machines without files can do without it.
#pragma once

#include <stdexcept>
#include <string>

#include "bytes.hpp"

namespace mi {

// A file could not be opened or read; what() names it and the cause.
struct FileError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The contents of a regular file, and its length in `size`: mapped where the system can, so that processes share them and
// nothing is copied, and read elsewhere. Whoever writes into a file that is mapped changes what was checked; files are to
// be replaced, not overwritten. Throws FileError or std::bad_alloc.
Bytes map_file(const std::string &path, size_t &size);

}  // namespace mi

// A block of bytes in memory, from the heap or mapped from a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace mi {

// Gives memory back: to the heap, or `mapped` bytes of a file to the operating system.
struct Release {
    size_t mapped = 0;
    void operator()(const uint8_t *data) const;
};
using Bytes = std::unique_ptr<const uint8_t[], Release>;

// A copy that lies at a multiple of 64 bytes. Throws std::bad_alloc.
Bytes copy_bytes(const void *data /* [size] */, size_t size);

}  // namespace mi

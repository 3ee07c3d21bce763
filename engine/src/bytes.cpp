#include "bytes.hpp"

#include <cstring>
#include <new>

#if defined(__unix__) && !defined(__wasi__)
#include <sys/mman.h>
#endif

namespace mi {
namespace {

constexpr std::align_val_t line{64};

}  // namespace

void Release::operator()(const uint8_t *data) const {
#if defined(__unix__) && !defined(__wasi__)
    if (mapped > 0) {
        munmap(const_cast<uint8_t *>(data), mapped);
        return;
    }
#endif
    ::operator delete(const_cast<uint8_t *>(data), line);
}

Bytes copy_bytes(const void *data, size_t size) {
    uint8_t *copy = static_cast<uint8_t *>(::operator new(size, line));
    if (size > 0) std::memcpy(copy, data, size);
    return Bytes(copy);
}

}  // namespace mi

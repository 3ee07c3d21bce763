#include "file.hpp"

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#if defined(__unix__) && !defined(__wasi__)
#define MI_MAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace mi {
namespace {

[[noreturn]] void fail(const std::string &path, const std::string &cause) {
    throw FileError("cannot read '" + path + "': " + cause);
}

#if MI_MAP

struct Descriptor {
    int number;
    ~Descriptor() {
        if (number >= 0) close(number);
    }
};

Bytes contents(const std::string &path, size_t &size) {
    const auto error = [] { return std::error_code(errno, std::generic_category()).message(); };
    const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    struct stat status;
    if (file.number < 0 || fstat(file.number, &status) != 0) fail(path, error());
    if (!S_ISREG(status.st_mode)) fail(path, "not a regular file");  // it was one when we asked first
    size = static_cast<size_t>(status.st_size);
    if (size == 0) return copy_bytes(nullptr, 0);
    void *data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number, 0);
    if (data == MAP_FAILED) fail(path, error());
    madvise(data, size, MADV_WILLNEED);
    return Bytes(static_cast<const uint8_t *>(data), Release{size});
}

#else

Bytes contents(const std::string &path, size_t &size) {
    const uintmax_t length = std::filesystem::file_size(path);
    if (length > SIZE_MAX) throw std::bad_alloc();
    const std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) fail(path, std::error_code(errno, std::generic_category()).message());
    size = static_cast<size_t>(length);
    const auto read = std::make_unique_for_overwrite<uint8_t[]>(size);
    if (std::fread(read.get(), 1, size, file.get()) != size)
        fail(path, "it became shorter while it was read, or the disk failed");
    return copy_bytes(read.get(), size);
}

#endif

}  // namespace

Bytes map_file(const std::string &path, size_t &size) {
    std::error_code error;
    const std::filesystem::file_status status = std::filesystem::status(path, error);
    if (status.type() == std::filesystem::file_type::not_found) fail(path, "no such file");
    if (error) fail(path, error.message());
    // Asked before the file is opened: to open a pipe would wait for its other end.
    if (!std::filesystem::is_regular_file(status)) fail(path, "not a regular file");
    return contents(path, size);
}

}  // namespace mi

#include "file.hpp"

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

namespace mi {

Bytes read_file(const std::string &path) {
    const auto fail = [&](const std::string &cause) -> void {
        throw FileError("cannot read '" + path + "': " + cause);
    };
    std::error_code error;
    const std::filesystem::file_status status = std::filesystem::status(path, error);
    if (status.type() == std::filesystem::file_type::not_found) fail("no such file");
    if (error) fail(error.message());
    if (!std::filesystem::is_regular_file(status)) fail("not a regular file");
    const uintmax_t size = std::filesystem::file_size(path, error);
    if (error) fail(error.message());
    if (size > SIZE_MAX) throw std::bad_alloc();

    const std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) fail(std::error_code(errno, std::generic_category()).message());
    Bytes bytes;
    bytes.size = static_cast<size_t>(size);
    bytes.data = std::make_unique_for_overwrite<uint8_t[]>(bytes.size);
    if (std::fread(bytes.data.get(), 1, bytes.size, file.get()) != bytes.size)
        fail("it became shorter while it was read, or the disk failed");
    return bytes;
}

}  // namespace mi

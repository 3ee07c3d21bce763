// Files for the fuzzers to begin with: seeds FOLDER writes FOLDER/model/… and FOLDER/state/….

#include <cstdio>
#include <filesystem>
#include <string>

#include "../tests/model_writer.hpp"
#include "session.hpp"
#include "state.hpp"

namespace {

void write(const std::filesystem::path &path, const test::Bytes &bytes) {
    std::filesystem::create_directories(path.parent_path());
    if (std::FILE *file = std::fopen(path.c_str(), "wb")) {
        std::fwrite(bytes.data(), 1, bytes.size(), file);
        std::fclose(file);
    }
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    const std::filesystem::path folder = argv[1];
    for (uint32_t i = 0; i < 16; ++i) {
        const test::Shape shape{3 + i % 4,    1,         1 + i % 2, 2, 2, 4, (i & 1) != 0, (i & 2) != 0, (i & 4) != 0,
                                (i & 8) != 0, i % 3 == 0};
        write(folder / "model" / std::to_string(i), test::random_model(shape, i).bytes());
    }
    const test::Bytes file = test::random_model({6, 1, 2, 2, 2, 5}, 1).bytes();
    const mi::Model model(mi::copy_bytes(file.data(), file.size()), file.size());
    mi::Session session(model, mi::ops::scalar_kernels);
    for (uint32_t i = 0; i < 3; ++i) {
        test::Bytes state(mi::state_bytes(model));
        mi::write_state(model, session.state(), state.data());
        write(folder / "state" / std::to_string(i), state);
        session.feed(&i, 1, nullptr);
    }
}

// SHA-256 (FIPS 180-4), for model and logits digests.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace mi {

class Sha256 {
  public:
    using Digest = std::array<uint8_t, 32>;

    void update(const void *data, size_t size);
    // The digest of everything so far. Ends the computation: no update may follow.
    Digest finish();

  private:
    void blocks(const uint8_t *bytes /* [64 n] */, size_t n);

    uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                          0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t tail_[64] = {};  // bytes that do not fill a block yet
    uint64_t length_ = 0;    // bytes so far
};

std::string to_hex(const Sha256::Digest &digest);  // 64 lowercase digits

}  // namespace mi

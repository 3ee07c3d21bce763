// What the command line needs to know about text: decimal numbers as exact integers, UTF-8 that is never split, JSON
// strings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mi {

// floor(value * 2^16 + 1/2) for a decimal number such as "0.8", exactly: no binary fraction comes between. The number
// is digits, a point and digits, of which either side may be missing but not both, each at most 40 long; no sign, no
// exponent. mamba_integer/sampling.py has the same rule. Nothing if it is not such a number, or is 2^20 or more.
inline std::optional<uint64_t> parse_q16(std::string_view text) {
    const size_t point = text.find('.');
    const std::string_view whole = text.substr(0, point);
    std::string fraction(point == text.npos ? "" : text.substr(point + 1));
    if (whole.size() > 40 || fraction.size() > 40 || (whole.empty() && fraction.empty())) return std::nullopt;
    uint64_t value = 0;
    for (char c : whole) {
        if (c < '0' || c > '9') return std::nullopt;
        value = value * 10 + static_cast<uint64_t>(c - '0');
        if (value >> 20) value = 1 << 20;  // and so it stays: too large
    }
    for (char c : fraction)
        if (c < '0' || c > '9') return std::nullopt;
    if (value >> 20) return std::nullopt;
    // Doubling the decimal fraction pushes out its binary digits, the first of them first; the 17th says how to round.
    int bit = 0;
    for (int i = 0; i < 17; ++i) {
        bit = 0;
        for (size_t d = fraction.size(); d-- > 0;) {
            const int doubled = 2 * (fraction[d] - '0') + bit;
            bit = doubled >= 10;
            fraction[d] = static_cast<char>('0' + doubled - 10 * bit);
        }
        if (i < 16) value = 2 * value + static_cast<uint64_t>(bit);
    }
    return value + static_cast<uint64_t>(bit);
}

// Bytes in, whole characters out. Bytes that belong to no character come out as U+FFFD, one for each longest piece that
// could have begun one (what Unicode recommends, and what Python's errors="replace" does).
class Utf8Stream {
  public:
    // The characters that `bytes` complete; an unfinished one waits.
    std::string push(std::string_view bytes) {
        held_ += bytes;
        return take(false);
    }
    // What is left.
    std::string finish() { return take(true); }

    // Whether all bytes so far were parts of characters.
    bool valid() const { return valid_; }

  private:
    std::string take(bool final) {
        std::string out;
        size_t at = 0;
        while (at < held_.size()) {
            const auto [length, whole] = piece(std::string_view(held_).substr(at));
            if (!whole && at + length == held_.size() && !final && could_go_on(std::string_view(held_).substr(at)))
                break;
            if (whole)
                out += held_.substr(at, length);
            else
                out += "\xef\xbf\xbd", valid_ = false;
            at += length;
        }
        held_.erase(0, at);
        return out;
    }

    static size_t length_by_lead(uint8_t lead) {
        return lead < 0x80                    ? 1
               : lead >= 0xc2 && lead <= 0xdf ? 2
               : lead >= 0xe0 && lead <= 0xef ? 3
               : lead >= 0xf0 && lead <= 0xf4 ? 4
                                              : 0;
    }

    struct Piece {
        size_t length;
        bool whole;
    };

    // The first character of `s`, or the longest beginning of one.
    static Piece piece(std::string_view s) {
        const uint8_t lead = static_cast<uint8_t>(s[0]);
        const size_t wanted = length_by_lead(lead);
        if (wanted == 0) return {1, false};
        size_t n = 1;
        for (; n < wanted && n < s.size(); ++n) {
            const uint8_t byte = static_cast<uint8_t>(s[n]);
            uint8_t low = 0x80, high = 0xbf;
            if (n == 1) {  // no overlong forms, no surrogates, nothing beyond U+10FFFF
                if (lead == 0xe0) low = 0xa0;
                if (lead == 0xed) high = 0x9f;
                if (lead == 0xf0) low = 0x90;
                if (lead == 0xf4) high = 0x8f;
            }
            if (byte < low || byte > high) break;
        }
        return {n, n == wanted};
    }

    static bool could_go_on(std::string_view s) { return length_by_lead(static_cast<uint8_t>(s[0])) > s.size(); }

    std::string held_;
    bool valid_ = true;
};

// A JSON string of valid UTF-8 text.
inline std::string json_string(std::string_view text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\')
            out += '\\', out += c;
        else if (c == '\n')
            out += "\\n";
        else if (static_cast<uint8_t>(c) < 0x20) {
            out += "\\u00";
            out += "01"[c >> 4], out += "0123456789abcdef"[c & 15];
        } else
            out += c;
    }
    return out + "\"";
}

}  // namespace mi

// Decimal numbers, UTF-8 and JSON strings of the command line.

#include "check.hpp"
#include "text.hpp"

namespace {

void test_decimal() {
    CHECK(mi::parse_q16("0") == 0u && mi::parse_q16("1") == 65536u && mi::parse_q16("64") == 1u << 22 &&
          mi::parse_q16("0.5") == 32768u);
    CHECK(mi::parse_q16("0.8") == 52429u);  // 52428.8
    CHECK(mi::parse_q16(".1") == 6554u && mi::parse_q16("1.") == 65536u && mi::parse_q16("0.95") == 62259u);
    CHECK(mi::parse_q16("0.00000762939453125") == 1u);  // 2^-17: half a unit goes up
    CHECK(mi::parse_q16("0.000007629394531249999999") == 0u);
    CHECK(mi::parse_q16("0.99999999999999999999") == 65536u);
    CHECK(mi::parse_q16("1048575.5") == (uint64_t{1048575} << 16) + 32768);
    for (const char *bad : {"", ".", "-1", "+1", "1e3", "0x1", " 1", "1 ", "1,5", "nan", "1.2.3", "1048576",
                            "99999999999999999999999999999999", "0.00000000000000000000000000000000000000001"})
        CHECK(!mi::parse_q16(bad));
}

std::string all(std::string_view bytes) {
    mi::Utf8Stream stream;
    std::string out = stream.push(bytes);
    out += stream.finish();
    std::string one_by_one;
    mi::Utf8Stream slow;
    for (char c : bytes) one_by_one += slow.push(std::string_view(&c, 1));
    CHECK(one_by_one + slow.finish() == out);
    CHECK(stream.valid() == slow.valid() && stream.valid() == (out == bytes));
    return out;
}

#define FFFD "\xef\xbf\xbd"

void test_utf8() {
    CHECK(all("plain") == "plain");
    CHECK(all("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80") == "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
    CHECK(all("\xe2\x82") == FFFD);  // cut at the end: one for the longest beginning
    CHECK(all("\xe2\x82x") == FFFD "x");
    CHECK(all("\xff\xfe") == FFFD FFFD);
    CHECK(all("\xc0\xaf") == FFFD FFFD);           // overlong
    CHECK(all("\xed\xa0\x80") == FFFD FFFD FFFD);  // surrogate
    CHECK(all("\xf4\x90\x80\x80") == FFFD FFFD FFFD FFFD);
    CHECK(all("\x80") == FFFD);
    mi::Utf8Stream stream;
    CHECK(stream.push("a\xf0\x9f") == "a" && stream.push("\x98") == "" && stream.push("\x80z") == "\xf0\x9f\x98\x80z" &&
          stream.finish().empty());
}

void test_json() { CHECK(mi::json_string("a\"b\\c\n\x01\x1f\xc3\xa9") == "\"a\\\"b\\\\c\\n\\u0001\\u001f\xc3\xa9\""); }

}  // namespace

int main() {
    test_decimal();
    test_utf8();
    test_json();
    return test::report("test_text");
}

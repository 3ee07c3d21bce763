// Reads the JSON of spec/vectors: objects, arrays, strings without escapes, and integers. Anything else ends the test.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace test {

struct Json {
    int64_t number = 0;
    std::string string;
    std::vector<Json> array;
    std::map<std::string, Json> object;

    const Json &operator[](const std::string &key) const {
        const auto found = object.find(key);
        if (found == object.end()) std::cerr << "no key " << key << "\n", std::exit(1);
        return found->second;
    }
    const Json &operator[](size_t i) const { return array.at(i); }
    size_t size() const { return array.size(); }
    bool has(const std::string &key) const { return object.contains(key); }

    bool operator==(int64_t v) const { return number == v; }
    template <class T>
    T as() const {
        return static_cast<T>(number);
    }
    template <class T>
    std::vector<T> list() const {
        std::vector<T> out;
        for (const Json &j : array) out.push_back(static_cast<T>(j.number));
        return out;
    }
    // A 64-bit word, written as [low, high].
    uint64_t word() const { return array.at(0).as<uint64_t>() | array.at(1).as<uint64_t>() << 32; }
};

class JsonReader {
  public:
    static Json file(const std::string &path) {
        std::ifstream in(path, std::ios::binary);
        if (!in) std::cerr << "cannot read " << path << "\n", std::exit(1);
        JsonReader reader({std::istreambuf_iterator<char>(in), {}});
        return reader.value();
    }

  private:
    explicit JsonReader(std::string text) : text_(std::move(text)) {}

    char next() {
        while (at_ < text_.size() && std::string(" \n\r\t").find(text_[at_]) != std::string::npos) ++at_;
        return at_ < text_.size() ? text_[at_] : '\0';
    }
    bool take(char c) {
        if (next() != c) return false;
        ++at_;
        return true;
    }
    void expect(char c) {
        if (!take(c)) std::cerr << "JSON: expected " << c << " at byte " << at_ << "\n", std::exit(1);
    }
    std::string quoted() {
        expect('"');
        const size_t end = text_.find_first_of("\"\\", at_);
        if (end == std::string::npos || text_[end] != '"') std::cerr << "JSON: bad string\n", std::exit(1);
        const std::string s = text_.substr(at_, end - at_);
        at_ = end + 1;
        return s;
    }
    Json value() {
        Json j;
        if (next() == '"') {
            j.string = quoted();
        } else if (take('[')) {
            if (take(']')) return j;
            do j.array.push_back(value());
            while (take(','));
            expect(']');
        } else if (take('{')) {
            if (take('}')) return j;
            do {
                const std::string key = quoted();
                expect(':');
                j.object[key] = value();
            } while (take(','));
            expect('}');
        } else {
            size_t digits = 0;
            j.number = std::stoll(text_.substr(at_, 24), &digits);
            at_ += digits;
        }
        return j;
    }

    std::string text_;
    size_t at_ = 0;
};

}  // namespace test

#include "model.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <string_view>

#include "sha256.hpp"

namespace mi {
namespace {

using std::string;
using std::string_view;

[[noreturn]] void fail(const string &message) { refuse(message); }

string text(uint64_t n) { return std::to_string(n); }
string text(int64_t n) { return std::to_string(n); }

uint64_t load_le(const uint8_t *p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; ++i) v |= uint64_t{p[i]} << (8 * i);
    return v;
}

// Names from a hostile file reach error messages only through this.
string quoted(string_view s) {
    string out = "'";
    for (char c : s.substr(0, 60)) out += c >= ' ' && c <= '~' ? c : '?';
    return out + (s.size() > 60 ? "...'" : "'");
}

bool is_utf8_text(string_view s) {  // and holds no zero byte, so that it can be a C string
    for (size_t i = 0; i < s.size();) {
        const auto byte = [&](size_t k) { return k < s.size() ? static_cast<uint8_t>(s[k]) : uint8_t{0}; };
        const uint8_t lead = byte(i);
        const size_t more = lead < 0x80                   ? 0
                            : lead >= 0xc2 && lead < 0xe0 ? 1
                            : lead >= 0xe0 && lead < 0xf0 ? 2
                            : lead >= 0xf0 && lead < 0xf5 ? 3
                                                          : 4;
        if (lead == 0 || more == 4) return false;
        for (size_t k = 1; k <= more; ++k)
            if ((byte(i + k) & 0xc0) != 0x80) return false;
        const uint8_t second = byte(i + 1);  // overlong forms, surrogates, and what lies beyond U+10FFFF
        if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) || (lead == 0xf0 && second < 0x90) ||
            (lead == 0xf4 && second > 0x8f))
            return false;
        i += 1 + more;
    }
    return true;
}

// The only way to the file's bytes until the layout is checked: every step is compared with what is left.
class Cursor {
  public:
    Cursor(const uint8_t *data, size_t size) : data_(data), size_(size) {}

    size_t position() const { return position_; }

    const uint8_t *take(uint64_t bytes, const char *what) {
        if (bytes > size_ - position_) fail(string("truncated or damaged file: it ends inside ") + what);
        const uint8_t *p = data_ + position_;
        position_ += static_cast<size_t>(bytes);
        return p;
    }
    uint32_t u32(const char *what) { return static_cast<uint32_t>(load_le(take(4, what), 4)); }
    uint64_t u64(const char *what) { return load_le(take(8, what), 8); }
    string_view str(const char *what) {
        const uint64_t length = u64(what);
        return {reinterpret_cast<const char *>(take(length, what)), static_cast<size_t>(length)};
    }

  private:
    const uint8_t *data_;  // [size]
    size_t size_;
    size_t position_ = 0;
};

// ---- The tables of FORMAT.md ----------------------------------------------------------------------------------------

constexpr uint32_t gguf_u32 = 4, gguf_string = 8, gguf_array = 9;  // value types
constexpr uint32_t gguf_i8 = 24, gguf_i16 = 25, gguf_i32 = 26;     // tensor types
constexpr size_t alignment = 32;

constexpr uint32_t format_version = 1, spec_version = 1;

struct Key {
    string_view name;
    uint32_t type;
    bool optional = false;
};

constexpr Key keys[] = {
    {"general.architecture", gguf_string},       {"general.name", gguf_string},
    {"general.description", gguf_string, true},  {"general.license", gguf_string, true},
    {"general.source", gguf_string, true},       {"mamba_integer.format_version", gguf_u32},
    {"mamba_integer.spec_version", gguf_u32},    {"mamba_integer.d_model", gguf_u32},
    {"mamba_integer.n_layers", gguf_u32},        {"mamba_integer.n_heads", gguf_u32},
    {"mamba_integer.head_dim", gguf_u32},        {"mamba_integer.d_state", gguf_u32},
    {"mamba_integer.vocab_size", gguf_u32},      {"mamba_integer.context_length", gguf_u32},
    {"mamba_integer.scan", gguf_string},         {"mamba_integer.activation", gguf_string},
    {"mamba_integer.gate", gguf_string},         {"mamba_integer.norm_mantissa", gguf_u32},
    {"mamba_integer.rotation", gguf_u32},        {"mamba_integer.weights", gguf_string},
    {"mamba_integer.embed_mul", gguf_u32},       {"mamba_integer.logit_shift", gguf_u32},
    {"mamba_integer.in_proj_shift", gguf_array}, {"mamba_integer.out_proj_shift", gguf_array},
    {"mamba_integer.tokenizer", gguf_string},    {"mamba_integer.model_digest", gguf_string},
};

const char *type_name(uint32_t type) {
    switch (type) {
        case gguf_u32:
            return "u32";
        case gguf_string:
            return "string";
        case gguf_array:
            return "array of u32";
        case gguf_i8:
            return "I8";
        case gguf_i16:
            return "I16";
        case gguf_i32:
            return "I32";
        default:
            return "of another type";
    }
}

struct Value {
    string_view raw;  // the whole pair as it lies in the file, for the digest
    uint32_t number = 0;
    string_view string;
    std::vector<uint32_t> array;
};

// A tensor that the configuration calls for. Its size follows from the configuration, never from the file's claim.
struct Tensor {
    uint32_t type;
    std::vector<uint64_t> shape;  // row-major order
    string_view info;             // name, dimensions and type as they lie in the file, for the digest
    uint64_t offset = 0;          // from the start of the tensor data
    const uint8_t *data = nullptr;

    bool found() const { return !info.empty(); }
    uint64_t count() const {
        uint64_t n = 1;
        for (uint64_t d : shape) n *= d;
        return n;
    }
    uint64_t bytes() const { return count() << (type - gguf_i8); }
};

uint64_t padded(uint64_t n) { return (n + alignment - 1) & ~uint64_t{alignment - 1}; }

}  // namespace

// ---- The reader -----------------------------------------------------------------------------------------------------

class ModelReader {
  public:
    ModelReader(Model &model, const uint8_t *data, size_t size)
        : model_(model), cursor_(data, size), data_(data), size_(size) {}

    void read() {
        const auto [n_tensors, n_pairs] = read_header();
        read_pairs(n_pairs);
        read_config();
        expect_tensors();
        read_tensor_infos(n_tensors);
        place_tensors();
        check_digest();  // before the values are looked at: a damaged file should say that it is damaged
        build();
    }

  private:
    struct Counts {
        uint64_t tensors, pairs;
    };

    Counts read_header() {
        if (std::memcmp(cursor_.take(4, "the header"), "GGUF", 4) != 0) fail("not a GGUF file");
        const uint32_t version = cursor_.u32("the header");
        if (version != 3)
            fail("GGUF version " + text(uint64_t{version}) + "; this release reads version 3, little-endian");
        const uint64_t tensors = cursor_.u64("the header");
        const uint64_t pairs = cursor_.u64("the header");
        return {tensors, pairs};
    }

    // Every pair must be one of the table and may appear once, so a claimed number of pairs cannot make this loop long.
    void read_pairs(uint64_t n_pairs) {
        for (uint64_t i = 0; i < n_pairs; ++i) {
            const size_t start = cursor_.position();
            const string_view name = cursor_.str("the key-value pairs");
            const Key *key =
                std::find_if(std::begin(keys), std::end(keys), [&](const Key &k) { return k.name == name; });
            if (key == std::end(keys)) fail("unknown key " + quoted(name));
            const uint32_t type = cursor_.u32("the key-value pairs");
            if (type != key->type)
                fail("key " + quoted(name) + " must be " + type_name(key->type) + "; the file has " + type_name(type));
            Value value = read_value(*key);
            value.raw = span(start);
            if (!values_.emplace(name, value).second) fail("key " + quoted(name) + " appears twice");
            check_identity(name, value);
        }
        for (const Key &key : keys)
            if (!key.optional && !values_.contains(key.name)) fail("key " + quoted(key.name) + " is missing");
    }

    Value read_value(const Key &key) {
        Value value;
        if (key.type == gguf_u32) {
            value.number = cursor_.u32("the key-value pairs");
        } else if (key.type == gguf_string) {
            value.string = cursor_.str("the key-value pairs");
        } else {
            const uint32_t type = cursor_.u32("the key-value pairs");
            if (type != gguf_u32) fail("key " + quoted(key.name) + " must be an array of u32");
            const uint64_t length = cursor_.u64("the key-value pairs");
            if (length > size_)
                fail("key " + quoted(key.name) +
                     ": the array is longer than the file");  // so that 4 * length cannot wrap
            const uint8_t *p = cursor_.take(4 * length, "the key-value pairs");
            for (uint64_t i = 0; i < length; ++i) value.array.push_back(static_cast<uint32_t>(load_le(p + 4 * i, 4)));
        }
        return value;
    }

    // Whose file this is, and of which version: said at once, before keys that this release does not know can hide it.
    void check_identity(string_view key, const Value &value) {
        if (key == "general.architecture" && value.string != "mamba_integer")
            fail("the file holds a model of architecture " + quoted(value.string) +
                 "; this engine runs 'mamba_integer'");
        if (key == "mamba_integer.format_version" && value.number != format_version)
            fail("format version " + text(uint64_t{value.number}) + "; this release reads format version " +
                 text(uint64_t{format_version}));
        if (key == "mamba_integer.spec_version" && value.number != spec_version)
            fail("spec version " + text(uint64_t{value.number}) + "; this release reads spec version " +
                 text(uint64_t{spec_version}));
    }

    const Value &value(const char *name) const { return values_.find(string("mamba_integer.") + name)->second; }

    int number(const char *name, uint32_t low, uint32_t high) const {
        const uint32_t n = value(name).number;
        if (n < low || n > high)
            fail(string("mamba_integer.") + name + " is " + text(uint64_t{n}) + "; it must be within " +
                 text(uint64_t{low}) + " ... " + text(uint64_t{high}));
        return static_cast<int>(n);
    }

    // 0 or 1: which of the two words the key holds.
    uint32_t choice(const char *name, string_view first, string_view second) const {
        const string_view word = value(name).string;
        if (word != first && word != second)
            fail(string("mamba_integer.") + name + " is " + quoted(word) + "; it must be " + quoted(first) + " or " +
                 quoted(second));
        return word == second;
    }

    void read_config() {
        Config &c = model_.config;
        c.d_model = number("d_model", 1, 4096);
        c.n_layers = number("n_layers", 1, 128);
        c.n_heads = number("n_heads", 1, 1024);
        c.head_dim = number("head_dim", 1, 256);
        c.d_state = number("d_state", 2, 64);
        c.vocab_size = number("vocab_size", 1, 1 << 17);
        c.context_length = value("context_length").number;
        c.scan = Scan{choice("scan", "convex", "literal")};
        c.activation = Activation{choice("activation", "silu", "squareplus")};
        c.gate = Activation{choice("gate", "silu", "squareplus")};
        c.norm_mantissa = number("norm_mantissa", 0, 8);
        c.rotation = number("rotation", 0, 1) == 1;
        c.ternary = choice("weights", "int8", "ternary") == 1;
        c.embed_mul = number("embed_mul", 1, 1023);
        c.logit_shift = number("logit_shift", 0, 31);
        if (c.d_inner() > 8192)
            fail("n_heads * head_dim is " + text(int64_t{c.d_inner()}) + "; it must be at most 8192");
        if (c.d_state & 1) fail("mamba_integer.d_state is " + text(int64_t{c.d_state}) + "; it must be even");
        if (c.norm_mantissa != 0 && c.norm_mantissa != 8)
            fail("mamba_integer.norm_mantissa is " + text(int64_t{c.norm_mantissa}) + "; it must be 0 or 8");
        for (const char *name : {"in_proj_shift", "out_proj_shift"}) {
            const std::vector<uint32_t> &shifts = value(name).array;
            if (shifts.size() != static_cast<size_t>(c.n_layers))
                fail(string("mamba_integer.") + name + " must have one element a layer");
            for (uint32_t s : shifts)
                if (s > 24)
                    fail(string("mamba_integer.") + name + " has a shift of " + text(uint64_t{s}) +
                         "; it must be at most 24");
        }
        const string_view name = values_.find("general.name")->second.string;
        if (!is_utf8_text(name)) fail("general.name is not UTF-8 text");
        model_.name = name;
        const string_view tokenizer = value("tokenizer").string;
        model_.tokenizer = tokenizer.data();
        model_.tokenizer_size = tokenizer.size();
    }

    void expect_tensors() {
        const Config &c = model_.config;
        const auto dim = [](int d) { return static_cast<uint64_t>(d); };
        const uint64_t D = dim(c.d_model), E = dim(c.d_inner()), H = dim(c.n_heads), V = dim(c.vocab_size);
        const uint64_t channels = dim(c.d_conv()), rows = dim(c.d_in_proj());
        const auto stored = [&](uint64_t cols) { return c.ternary ? (cols + 3) >> 2 : cols; };
        const auto expect = [&](const string &name, uint32_t type, std::vector<uint64_t> shape) {
            tensors_[name] = {type, std::move(shape), {}};
        };
        expect("token_embd.weight", gguf_i8, {V, D});
        expect("output_norm.scale", gguf_i8, {D});
        for (int i = 0; i < c.n_layers; ++i) {
            const string blk = "blk." + text(int64_t{i}) + ".";
            expect(blk + "norm1.scale", gguf_i8, {D});
            expect(blk + "in_proj.weight", gguf_i8, {rows, stored(D)});
            expect(blk + "in_proj.mul", gguf_i16, {rows});
            expect(blk + "conv.weight", gguf_i8, {channels, 4});
            expect(blk + "conv.bias", gguf_i16, {channels});
            expect(blk + "scan.k", gguf_i8, {H});
            expect(blk + "scan.A", gguf_i32, {H});
            expect(blk + "scan.base", gguf_i16, {H});
            expect(blk + "scan.skip", gguf_i8, {H});
            expect(blk + "norm2.scale", gguf_i8, {E});
            expect(blk + "out_proj.weight", gguf_i8, {D, stored(E)});
            expect(blk + "out_proj.mul", gguf_i16, {D});
        }
    }

    void read_tensor_infos(uint64_t n_tensors) {
        if (n_tensors != tensors_.size())
            fail("the file has " + text(n_tensors) + " tensors; a model of " + text(int64_t{model_.config.n_layers}) +
                 " layers has " + text(uint64_t{tensors_.size()}));
        uint64_t end = 0;  // of the tensors so far, padded
        for (uint64_t i = 0; i < n_tensors; ++i) {
            const size_t start = cursor_.position();
            const string_view name = cursor_.str("the tensor list");
            const auto found = tensors_.find(name);
            if (found == tensors_.end()) fail("unknown tensor " + quoted(name));
            Tensor &tensor = found->second;
            if (tensor.found()) fail("tensor " + quoted(name) + " appears twice");
            read_shape(found->first, tensor);
            const uint32_t type = cursor_.u32("the tensor list");
            if (type != tensor.type)
                fail("tensor " + quoted(name) + " must be " + type_name(tensor.type) + "; the file has " +
                     type_name(type));
            tensor.info = span(start);
            tensor.offset = cursor_.u64("the tensor list");
            if (tensor.offset != end)
                fail("tensor " + quoted(name) + " lies at offset " + text(tensor.offset) + "; it must lie at " +
                     text(end));
            end += padded(tensor.bytes());
        }
        data_start_ = static_cast<size_t>(padded(cursor_.position()));
        if (data_start_ > size_ || size_ - data_start_ != end) {
            const uint64_t whole = data_start_ + end;
            fail(string(whole > size_ ? "truncated file" : "the file goes on after its last tensor") + ": it has " +
                 text(uint64_t{size_}) + " bytes; its tensors end at " + text(whole));
        }
    }

    void read_shape(const string &name, Tensor &tensor) {
        const uint32_t n_dims = cursor_.u32("the tensor list");
        bool same = n_dims == tensor.shape.size();
        std::vector<uint64_t> shape;
        for (size_t d = 0; same && d < n_dims; ++d)
            shape.insert(shape.begin(), cursor_.u64("the tensor list"));              // innermost first
        if (same && name.ends_with(".scale") && shape[0] == 1) tensor.shape = shape;  // one scale for all elements
        same = same && shape == tensor.shape;
        if (same) return;
        string want, got;
        for (uint64_t d : tensor.shape) want += (want.empty() ? "" : ", ") + text(d);
        for (uint64_t d : shape) got += (got.empty() ? "" : ", ") + text(d);
        fail("tensor " + quoted(name) + " must have the shape [" + want + "]; the file has " +
             (shape.empty() ? text(uint64_t{n_dims}) + " dimensions" : "[" + got + "]"));
    }

    void place_tensors() {
        check_zero(cursor_.position(), data_start_);
        for (auto &[name, tensor] : tensors_) {
            const size_t start = data_start_ + static_cast<size_t>(tensor.offset),
                         end = start + static_cast<size_t>(tensor.bytes());
            tensor.data = data_ + start;
            check_zero(end, static_cast<size_t>(padded(end)));
        }
    }

    // Padding is outside the digest; were it free, two files of one model could differ.
    void check_zero(size_t begin, size_t end) const {
        for (size_t i = begin; i < end; ++i)
            if (data_[i] != 0) fail("padding at byte " + text(uint64_t{i}) + " is not zero");
    }

    void check_digest() {
        Sha256 sha;
        const auto number = [&](uint64_t v) {
            uint8_t bytes[8];
            for (int i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(v >> (8 * i));
            sha.update(bytes, 8);
        };
        const string_view prefix = "mamba-integer-model-1";
        sha.update(prefix.data(), prefix.size());
        for (const auto &[key, value] : values_)  // a std::map is sorted by byte order
            if (key != "mamba_integer.model_digest") sha.update(value.raw.data(), value.raw.size());
        for (const auto &[name, tensor] : tensors_) {
            sha.update(tensor.info.data(), tensor.info.size());
            number(tensor.bytes());
            sha.update(tensor.data, static_cast<size_t>(tensor.bytes()));
        }
        model_.digest = to_hex(sha.finish());
#if !defined(FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION)  // a fuzzer would never get past here
        const string_view claimed = value("model_digest").string;
        if (claimed != model_.digest)
            fail("damaged or altered file: its contents have the digest " + model_.digest + ", not " + quoted(claimed) +
                 " as it says");
#endif
    }

    // ---- Values: each reader checks the range that FORMAT.md gives, whatever the digest says.

    const Tensor &tensor(const string &name) const { return tensors_.find(name)->second; }

    template <class T>
    T *own(uint64_t count) {
        model_.owned_.emplace_back(new std::byte[static_cast<size_t>(count) * sizeof(T)]);
        return reinterpret_cast<T *>(model_.owned_.back().get());
    }

    static void check_range(const string &name, uint64_t index, int64_t v, int64_t low, int64_t high) {
        if (v < low || v > high)
            fail("tensor " + quoted(name) + ", element " + text(index) + ": " + text(v) + " is outside " + text(low) +
                 " ... " + text(high));
    }

    const int8_t *int8s(const string &name, int low = -127, int high = 127) const {
        const Tensor &t = tensor(name);
        const int8_t *values = reinterpret_cast<const int8_t *>(t.data);
        bool good = true;  // a loop without a way out is one for vector registers
        for (uint64_t i = 0; i < t.count(); ++i) good &= values[i] >= low && values[i] <= high;
        for (uint64_t i = 0; !good && i < t.count(); ++i) check_range(name, i, values[i], low, high);
        return values;
    }

    const int16_t *int16s(const string &name, int low, int high) {
        const Tensor &t = tensor(name);
        int16_t *values = own<int16_t>(t.count());
        for (uint64_t i = 0; i < t.count(); ++i) {
            values[i] = static_cast<int16_t>(load_le(t.data + 2 * i, 2));
            check_range(name, i, values[i], low, high);
        }
        return values;
    }

    const int32_t *int32s(const string &name, int low, int high) {
        const Tensor &t = tensor(name);
        int32_t *values = own<int32_t>(t.count());
        for (uint64_t i = 0; i < t.count(); ++i) {
            values[i] = static_cast<int32_t>(load_le(t.data + 4 * i, 4));
            check_range(name, i, values[i], low, high);
        }
        return values;
    }

    // A norm's scales: one per element, or one that is spread over all of them here so that the norm need not ask.
    const int8_t *scale(const string &name, int d) {
        const int8_t *values = int8s(name);
        if (tensor(name).count() == static_cast<uint64_t>(d)) return values;
        int8_t *spread = own<int8_t>(static_cast<uint64_t>(d));
        std::fill_n(spread, d, values[0]);
        return spread;
    }

    // A row of packed ternary weights: the sum of their magnitudes.
    int64_t ternary_sum(const string &name, int64_t row, const uint8_t *packed /* [ceil(cols/4)] */, int cols) const {
        const int stride = (cols + 3) >> 2, used = cols & 3;
        int32_t sum = 0;
        bool bad = false;
        for (int i = 0; i < stride; ++i) {
            const int set = (packed[i] | packed[i] >> 1) & 0x55;  // a bit for each weight that is not zero
            bad |= (packed[i] & packed[i] >> 1 & 0x55) != 0;
            sum += (set & 1) + (set >> 2 & 1) + (set >> 4 & 1) + (set >> 6);
        }
        if (bad) fail("tensor " + quoted(name) + ", row " + text(row) + ": ternary code 3 stands for nothing");
        if (used > 0 && packed[stride - 1] >> (2 * used) != 0)
            fail("tensor " + quoted(name) + ", row " + text(row) + ": the padding is not zero");
        return sum;
    }

    static int64_t int8_sum(const int8_t *values /* [n] */, int n) {
        int32_t sum = 0;  // n <= 8192
        for (int i = 0; i < n; ++i) sum += values[i] < 0 ? -values[i] : values[i];
        return sum;
    }

    Linear linear(const string &name, int rows, int cols, uint32_t shift) {
        const string weight = name + ".weight";
        const bool ternary = model_.config.ternary;
        const int8_t *values = ternary ? nullptr : int8s(weight);
        const uint8_t *packed = tensor(weight).data;
        const Linear p = {packed, int16s(name + ".mul", 1, 255), rows, cols, static_cast<int>(shift), ternary};
        const int64_t half = (int64_t{1} << shift) >> 1, stride = (cols + 3) >> 2;
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t sum =
                ternary ? ternary_sum(weight, row, packed + row * stride, cols) : int8_sum(values + row * cols, cols);
            const int64_t worst = 127 * sum * p.mul[row] + half;
            if (worst >= int64_t{1} << 30)
                fail("tensor " + quoted(weight) + ", row " + text(row) + ": its sum may reach " + text(worst) +
                     ", beyond 2^30");
        }
        return p;
    }

    void build() {
        const Config &c = model_.config;
        model_.embedding = int8s("token_embd.weight");
        static_assert(127 * 127 * 4096 < 1 << 30, "the bound on a logit holds for every embedding within the limits");
        model_.norm_f = scale("output_norm.scale", c.d_model);
        for (int i = 0; i < c.n_layers; ++i) {
            const string blk = "blk." + text(int64_t{i}) + ".";
            const size_t at = static_cast<size_t>(i);
            Layer layer;
            layer.norm1 = scale(blk + "norm1.scale", c.d_model);
            layer.in_proj = linear(blk + "in_proj", c.d_in_proj(), c.d_model, value("in_proj_shift").array[at]);
            layer.conv_weight = int8s(blk + "conv.weight");
            layer.conv_bias = int16s(blk + "conv.bias", -32767, 32767);
            layer.scan_k = int8s(blk + "scan.k", 8, 15);
            layer.scan_A = int32s(blk + "scan.A", 1, 1 << 19);
            layer.scan_base = int16s(blk + "scan.base", -32767, 32767);
            layer.scan_skip = int8s(blk + "scan.skip");
            layer.norm2 = scale(blk + "norm2.scale", c.d_inner());
            layer.out_proj = linear(blk + "out_proj", c.d_model, c.d_inner(), value("out_proj_shift").array[at]);
            model_.layers.push_back(layer);
        }
    }

    string_view span(size_t start) const {
        return {reinterpret_cast<const char *>(data_ + start), cursor_.position() - start};
    }

    Model &model_;
    Cursor cursor_;
    const uint8_t *data_;  // [size]
    size_t size_;
    size_t data_start_ = 0;
    std::map<string, Value, std::less<>> values_;
    std::map<string, Tensor, std::less<>> tensors_;
};

Model::Model(Bytes bytes, size_t size) : bytes_(std::move(bytes)) { ModelReader(*this, bytes_.get(), size).read(); }

}  // namespace mi

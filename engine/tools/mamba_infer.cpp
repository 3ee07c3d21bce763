// mamba_infer: generates text with a Mamba-Integer model. One program, no Python.
//
// All arithmetic that decides a token happens in the library, in integers; floating point appears here once, to print a
// speed.

#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "mamba_integer.h"
#include "sha256.hpp"
#include "text.hpp"
#ifdef MI_TOKENIZER
#include "mamba_integer_tokenizer.h"
#endif

namespace {

using std::string;
using std::string_view;

constexpr const char *help =
    R"(usage: mamba_infer [options]

Continues a prompt with a Mamba-Integer model, in integers only: the same seed gives the same text on every machine.

  --model NAME|FILE   a shipped model's name or a model file (default: tinystories). Names are looked for in the folders of
                      $MAMBA_INTEGER_MODELS, in ./models, and in the folder models beside the program or above it
  --prompt TEXT       text to continue (default: Once upon a time)
  --tokens 1,2,3      token ids to continue, in place of --prompt: token ids come out, too, and no tokenizer is needed
  --max-tokens N      stop after N tokens (default: 200)
  --temperature T     0 is greedy, at most 64 (default: 0.8); taken as exactly that decimal number, rounded to 16 binary digits
  --top-k K           choose among the K likeliest tokens; 0 is off (default: 40)
  --top-p P           choose among the likeliest tokens of total probability P; 1 is off (default: 1)
  --seed S            0 ... 2^64 - 1 (default: 0)
  --device NAME       cpu, or cuda for a GPU (docs/CUDA.md): the same tokens (default: cpu)
  --json              print one JSON object: text, tokens, prompt_tokens, model_digest, logits_digest, stop_reason, tokens_per_second
  --logits-digest     print the SHA-256 of all logits (int32, little-endian, every position that was fed, in order)
  --help, --version

The start token <|endoftext|> is put before every prompt that does not begin with it; when it is chosen, generation ends.
Exit status: 0 done; 2 bad usage or bad input, said on standard error.
)";

// Bad usage or bad input: the message for standard error.
struct UserError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// ---- the command line -----------------------------------------------------------------------------------------------

struct Options {
    string model = "tinystories";
    std::optional<string> prompt;
    std::optional<std::vector<uint32_t>> tokens;
    uint64_t max_tokens = 200;
    string device = "cpu";
    mi_sampling sampling = {0, 40, 65536,
                            0};  // the temperature is set from its default below, by the rule for all temperatures
    bool json = false;
    bool logits_digest = false;
};

uint64_t integer(string_view name, string_view text, uint64_t low, uint64_t high) {
    uint64_t v = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
    if (text.empty() || error != std::errc() || end != text.data() + text.size() || v < low || v > high)
        throw UserError(string(name) + " must be an integer from " + std::to_string(low) + " to " +
                        std::to_string(high) + ", not '" + string(text) + "'");
    return v;
}

uint32_t q16(string_view name, string_view text, uint32_t low, uint32_t high, const char *range) {
    const std::optional<uint64_t> v = mi::parse_q16(text);
    if (!v || *v < low || *v > high)
        throw UserError(string(name) + " must be a decimal number " + range + ", not '" + string(text) + "'");
    return static_cast<uint32_t>(*v);
}

std::vector<uint32_t> token_list(string_view text) {
    std::vector<uint32_t> tokens;
    for (size_t at = 0; at <= text.size();) {
        const size_t comma = std::min(text.find(',', at), text.size());
        tokens.push_back(
            static_cast<uint32_t>(integer("each of --tokens", text.substr(at, comma - at), 0, UINT32_MAX)));
        at = comma + 1;
    }
    return tokens;
}

// Nothing if --help or --version was all that was asked for.
std::optional<Options> parse(int argc, char **argv) {
    Options o;
    string_view temperature = "0.8";
    for (int i = 1; i < argc; ++i) {
        string_view name = argv[i];
        if (name == "--help" || name == "-h") return std::fputs(help, stdout), std::nullopt;
        if (name == "--version") return std::printf("mamba_infer %s\n", mi_version()), std::nullopt;
        if (name == "--json") {
            o.json = true;
            continue;
        }
        if (name == "--logits-digest") {
            o.logits_digest = true;
            continue;
        }
        std::optional<string_view> inline_value;
        if (const size_t equals = name.find('='); name.starts_with("--") && equals != name.npos) {
            inline_value = name.substr(equals + 1);
            name = name.substr(0, equals);
        }
        const auto value = [&] {
            if (inline_value) return *inline_value;
            if (++i == argc) throw UserError(string(name) + " needs a value (see mamba_infer --help)");
            return string_view(argv[i]);
        };
        if (name == "--model")
            o.model = value();
        else if (name == "--prompt")
            o.prompt = value();
        else if (name == "--tokens")
            o.tokens = token_list(value());
        else if (name == "--max-tokens")
            o.max_tokens = integer(name, value(), 1, INT32_MAX);
        else if (name == "--device")
            o.device = value();
        else if (name == "--temperature")
            temperature = value();
        else if (name == "--top-k")
            o.sampling.top_k = static_cast<uint32_t>(integer(name, value(), 0, UINT32_MAX));
        else if (name == "--top-p")
            o.sampling.top_p = q16(name, value(), 1, 1 << 16, "above 0 and at most 1");
        else if (name == "--seed")
            o.sampling.seed = integer(name, value(), 0, UINT64_MAX);
        else
            throw UserError("unknown option '" + string(name) + "' (see mamba_infer --help)");
    }
    o.sampling.temperature = q16("--temperature", temperature, 0, 1 << 22, "from 0 to 64");
    if (o.prompt && o.tokens) throw UserError("--prompt and --tokens exclude each other");
    if (o.prompt && o.prompt->empty()) throw UserError("the prompt is empty");
    return o;
}

// ---- models ---------------------------------------------------------------------------------------------------------

string find_model(const string &name, const char *argv0) {
    namespace fs = std::filesystem;
    if (name.ends_with(".gguf") || name.find('/') != name.npos) return name;
    std::vector<fs::path> folders;
    if (const char *variable = std::getenv("MAMBA_INTEGER_MODELS"))
        for (string_view rest = variable; !rest.empty();) {
            const size_t colon = std::min(rest.find(':'), rest.size());
            if (colon > 0) folders.push_back(rest.substr(0, colon));
            rest.remove_prefix(std::min(colon + 1, rest.size()));
        }
    folders.push_back("models");
    std::error_code error;
    fs::path program = fs::read_symlink("/proc/self/exe", error);
    if (error) program = fs::absolute(argv0, error);
    fs::path above = program.parent_path();
    for (int level = 0; level < 4 && !above.empty(); ++level, above = above.parent_path())
        folders.push_back(above / "models");
    for (const fs::path &folder : folders) {
        const fs::path file = folder / (name + ".gguf");
        if (fs::is_regular_file(file, error)) return file.string();
    }
    if (fs::is_regular_file(name, error)) return name;
    throw UserError("unknown model '" + name + "': there is no " + name +
                    ".gguf in the folders of $MAMBA_INTEGER_MODELS, in ./models, or in models beside the program");
}

void check(mi_status status) {
    if (status != MI_OK) throw UserError(mi_last_error());
}

template <class T, void (*Free)(T *)>
struct Freed {
    void operator()(T *p) const { Free(p); }
};
using Model = std::unique_ptr<mi_model, Freed<mi_model, mi_model_free>>;
using Session = std::unique_ptr<mi_session, Freed<mi_session, mi_session_free>>;

// ---- text -----------------------------------------------------------------------------------------------------------

// The tokenizer inside a model file; or nothing, and then tokens are all there is.
class Text {
  public:
    Text(const mi_model *model, uint32_t vocab_size, bool wanted) : eot(vocab_size - 1) {
#ifdef MI_TOKENIZER
        if (!wanted) return;
        size_t size = 0;
        const char *data = mi_model_tokenizer(model, &size);
        mi_tokenizer *raw = nullptr;
        if (mi_tokenizer_from_bytes(data, size, &raw) != MI_TOKENIZER_OK)
            throw UserError("the model's tokenizer: " + string(mi_tokenizer_last_error()));
        tokenizer_.reset(raw);
        if (mi_tokenizer_vocab_size(raw) != vocab_size)
            throw UserError("the model's tokenizer has " + std::to_string(mi_tokenizer_vocab_size(raw)) +
                            " tokens, the model " + std::to_string(vocab_size));
        eot = mi_tokenizer_eot_id(raw);
#else
        (void)model;
        if (wanted) throw UserError("this build has no tokenizer: give the prompt as --tokens");
#endif
    }

    bool available() const {
#ifdef MI_TOKENIZER
        return tokenizer_ != nullptr;
#else
        return false;
#endif
    }

    std::vector<uint32_t> encode(const string &text) const {
        mi::Utf8Stream utf8;
        utf8.push(text), utf8.finish();
        if (!utf8.valid()) throw UserError("the prompt is not UTF-8 text");
        std::vector<uint32_t> tokens(text.size());  // never more tokens than bytes
#ifdef MI_TOKENIZER
        size_t n = 0;
        if (mi_tokenizer_encode(tokenizer_.get(), text.data(), text.size(), MI_TOKENIZER_SPECIAL_REFUSE, tokens.data(),
                                tokens.size(), &n) != MI_TOKENIZER_OK)
            throw UserError("the prompt: " + string(mi_tokenizer_last_error()));
        tokens.resize(n);
#endif
        return tokens;
    }

    string bytes(uint32_t token) const {
        string out(256, '\0');  // never more
        size_t n = 0;
#ifdef MI_TOKENIZER
        if (mi_tokenizer_token_bytes(tokenizer_.get(), token, reinterpret_cast<uint8_t *>(out.data()), out.size(),
                                     &n) != MI_TOKENIZER_OK)
            throw UserError(mi_tokenizer_last_error());
#else
        (void)token;
#endif
        out.resize(n);
        return out;
    }

    uint32_t eot;  // the id of <|endoftext|>: the last one

  private:
#ifdef MI_TOKENIZER
    std::unique_ptr<mi_tokenizer, Freed<mi_tokenizer, mi_tokenizer_free>> tokenizer_;
#endif
};

// ---- generation -----------------------------------------------------------------------------------------------------

// SHA-256 over the logits of every position that is fed, if it is wanted.
class Feeder {
  public:
    Feeder(mi_session *session, size_t vocab_size, bool digest)
        : session_(session), vocab_size_(vocab_size), digest_(digest) {}

    void feed(const std::vector<uint32_t> &tokens) {
        if (!digest_) return check(mi_session_feed(session_, tokens.data(), tokens.size(), nullptr));
        for (uint32_t token : tokens) {
            check(mi_session_feed(session_, &token, 1, nullptr));
            const int32_t *logits = mi_session_logits(session_);
            if (!logits) throw UserError(mi_last_error());
            for (size_t v = 0; v < vocab_size_; ++v)
                for (size_t i = 0; i < 4; ++i)
                    bytes_[4 * v + i] = static_cast<uint8_t>(static_cast<uint32_t>(logits[v]) >> (8 * i));
            sha_.update(bytes_.data(), bytes_.size());
        }
    }
    string digest() { return mi::to_hex(sha_.finish()); }

  private:
    mi_session *session_;
    size_t vocab_size_;
    bool digest_;
    std::vector<uint8_t> bytes_ = std::vector<uint8_t>(digest_ ? 4 * vocab_size_ : 0);
    mi::Sha256 sha_;
};

string json_list(const std::vector<uint32_t> &tokens) {
    string out;
    for (uint32_t t : tokens) out += (out.empty() ? "" : ", ") + std::to_string(t);
    return "[" + out + "]";
}

void print(const string &s) {
    if (std::fwrite(s.data(), 1, s.size(), stdout) != s.size() || std::fflush(stdout) != 0)
        throw UserError("cannot write to standard output");
}

void run(const Options &o, const char *argv0) {
    mi_model *raw_model = nullptr;
    check(mi_model_load(find_model(o.model, argv0).c_str(), &raw_model));
    const Model model(raw_model);
    mi_config config{};
    mi_model_get_config(model.get(), &config);

#ifdef MI_TOKENIZER
    const bool wants_text = !o.tokens;
#else
    const bool wants_text = o.prompt.has_value();
#endif
    const Text text(model.get(), config.vocab_size, wants_text);
    const string prompt = o.prompt.value_or("Once upon a time");
    std::vector<uint32_t> prompt_tokens =
        text.available() ? text.encode(prompt) : o.tokens.value_or(std::vector<uint32_t>{});
    if (prompt_tokens.empty() || prompt_tokens[0] != text.eot) prompt_tokens.insert(prompt_tokens.begin(), text.eot);

    mi_session *raw_session = nullptr;
    check(mi_session_new_on(model.get(), o.device.c_str(), &raw_session));
    const Session session(raw_session);
    Feeder feeder(session.get(), config.vocab_size, o.json || o.logits_digest);

    if (!o.json && text.available()) print(prompt);
    const auto began = std::chrono::steady_clock::now();
    std::vector<uint32_t> tokens, next = prompt_tokens;
    mi::Utf8Stream utf8;
    string generated;
    const char *stop_reason = "max_tokens";
    while (tokens.size() < o.max_tokens) {
        feeder.feed(next);  // so the last token chosen is never fed
        uint32_t token = 0;
        check(mi_session_sample(session.get(), &o.sampling, tokens.size(), &token));
        tokens.push_back(token);
        next = {token};
        if (!o.json && !text.available()) print((tokens.size() == 1 ? "" : " ") + std::to_string(token));
        if (token == text.eot) {
            stop_reason = "end";
            break;
        }
        if (!text.available()) continue;
        const string piece = utf8.push(text.bytes(token));
        generated += piece;
        if (!o.json) print(piece);
    }
    const string rest = utf8.finish();
    generated += rest;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;

    if (!o.json) {
        print(rest + "\n");
        if (o.logits_digest) print("logits_digest " + feeder.digest() + "\n");
        return;
    }
    char speed[32];
    std::snprintf(speed, sizeof speed, "%.2f",
                  static_cast<double>(prompt_tokens.size() + tokens.size()) / seconds.count());
    print("{\"text\": " + (text.available() ? mi::json_string(generated) : "null") +
          ", \"tokens\": " + json_list(tokens) + ", \"prompt_tokens\": " + json_list(prompt_tokens) +
          ", \"model_digest\": \"" + mi_model_digest(model.get()) + "\", \"logits_digest\": \"" + feeder.digest() +
          "\", \"stop_reason\": \"" + stop_reason + "\", \"tokens_per_second\": " + speed + "}\n");
}

}  // namespace

int main(int argc, char **argv) {
    try {
        if (const std::optional<Options> options = parse(argc, argv)) run(*options, argv[0]);
        return 0;
    } catch (const std::bad_alloc &) {
        std::fputs("mamba_infer: error: out of memory\n", stderr);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "mamba_infer: error: %s\n", error.what());
    }
    return 2;
}

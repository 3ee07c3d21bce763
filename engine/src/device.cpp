#include "device.hpp"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace mi {
namespace {

[[noreturn]] void unavailable(const std::string &cause) { throw DeviceError(MI_ERR_DEVICE, "device cuda: " + cause); }

#if defined(__linux__)

constexpr const char *library = "libmamba_integer_cuda.so", *variable = "MAMBA_INTEGER_CUDA";

// The library beside the one, or the program, that this code is in.
std::string beside_us() {
    Dl_info info;
    if (!dladdr(reinterpret_cast<const void *>(&beside_us), &info) || !info.dli_fname) return library;
    const std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/') + 1) + library;
}

// Libraries stay loaded to the end of the process.
void *open_library() {
    const char *named = std::getenv(variable);
    if (named && *named) return dlopen(named, RTLD_NOW | RTLD_LOCAL);
    if (void *found = dlopen(beside_us().c_str(), RTLD_NOW | RTLD_LOCAL)) return found;
    return dlopen(library, RTLD_NOW | RTLD_LOCAL);
}

const DevicePlugin &find_plugin() {
    void *handle = open_library();
    if (!handle) {
        const char *cause = dlerror();
        unavailable(std::string(cause ? cause : library) + "; scripts/build_cuda.sh builds it, and " + variable +
                    " may say where it is");
    }
    PluginFn function = nullptr;
    void *symbol = dlsym(handle, plugin_symbol);
    std::memcpy(&function, &symbol, sizeof symbol);
    const DevicePlugin *plugin = function ? function() : nullptr;
    if (!plugin || plugin->version != plugin_version || std::strcmp(plugin->engine, engine_version) != 0)
        unavailable(std::string(library) + " is not of this release, " + engine_version);
    return *plugin;
}

#else

const DevicePlugin &find_plugin() { unavailable("not on this operating system"); }

#endif

// Found once; what fails is tried again, as the user may have set the variable since.
const DevicePlugin &plugin() {
    static std::mutex lock;
    static const DevicePlugin *found = nullptr;
    const std::lock_guard<std::mutex> hold(lock);
    if (!found) found = &find_plugin();
    return *found;
}

}  // namespace

DeviceModel::DeviceModel(const Model &model) : model_(model), plugin_(mi::plugin()) {
    check(plugin_.model_new({&model.config, model.embedding, model.layers.data(), model.norm_f}, &handle_));
}

void DeviceModel::check(mi_status status) const {
    if (status != MI_OK) throw DeviceError(status, std::string("device cuda: ") + plugin_.last_error());
}

DeviceSession::DeviceSession(std::shared_ptr<DeviceModel> model)
    : model_(std::move(model)),
      plugin_(model_->plugin()),
      logits_(static_cast<size_t>(model_->model().config.vocab_size)) {
    model_->check(plugin_.session_new(model_->handle(), &handle_));
}

void DeviceSession::reset() {
    fetched_ = false;
    model_->check(plugin_.reset(handle_));
}

const int32_t *DeviceSession::logits() const {
    if (position() == 0) return nullptr;
    if (!fetched_) model_->check(plugin_.logits(handle_, logits_.data()));
    fetched_ = true;
    return logits_.data();
}

uint32_t DeviceSession::sample(const Sampling &sampling, uint64_t step) const {
    const bool greedy = sampling.temperature == 0;
    const Draw draw = {greedy ? 0 : inverse_temperature(model_->model().config.embed_mul, sampling.temperature),
                       sampling.top_k, sampling.top_p, random_word(sampling.seed, step)};
    uint32_t token = 0;
    model_->check(plugin_.sample(handle_, draw, &token));
    return token;
}

State DeviceSession::save() const {
    State state(model_->model().config);
    state.position = position();
    model_->check(plugin_.save(handle_, {state.past.data(), state.h.data(), state.logits.data()}));
    return state;
}

void DeviceSession::restore(const State &state) {
    State copy = state;
    fetched_ = false;
    model_->check(plugin_.restore(handle_, {copy.past.data(), copy.h.data(), copy.logits.data()}, state.position));
}

void DeviceSession::feed(const Tokens *feeds, size_t count) {
    if (count == 0) return;
    std::vector<DeviceFeed> all;
    for (const Tokens *f = feeds; f != feeds + count; ++f) {
        f->session->fetched_ = false;
        all.push_back({f->session->handle_, f->tokens, f->n, f->all_logits});
    }
    const DeviceModel &model = *feeds[0].session->model_;
    model.check(model.plugin().feed(model.handle(), all.data(), count));
}

}  // namespace mi

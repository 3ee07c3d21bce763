// Sequences on a device other than the CPU: the plug-in that computes there, found when it is first asked for.
//
// What this file knows: plugin.hpp and where libraries lie. What it does not know: CUDA.
#pragma once

#include <memory>
#include <stdexcept>
#include <vector>

#include "plugin.hpp"
#include "sampler.hpp"
#include "session.hpp"

namespace mi {

struct DeviceError : std::runtime_error {
    DeviceError(mi_status s, const std::string &message) : std::runtime_error(message), status(s) {}
    mi_status status;
};

// A model's weights on the GPU. All that follows throws DeviceError or std::bad_alloc.
class DeviceModel {
  public:
    // The model must outlive this.
    explicit DeviceModel(const Model &model);
    ~DeviceModel() { plugin_.model_free(handle_); }
    DeviceModel(const DeviceModel &) = delete;

    const Model &model() const { return model_; }
    const DevicePlugin &plugin() const { return plugin_; }
    void *handle() const { return handle_; }
    void check(mi_status status) const;

  private:
    const Model &model_;
    const DevicePlugin &plugin_;
    void *handle_ = nullptr;
};

// As Session, with its state on the device.
class DeviceSession {
  public:
    explicit DeviceSession(std::shared_ptr<DeviceModel> model);
    ~DeviceSession() { plugin_.session_free(handle_); }
    DeviceSession(const DeviceSession &) = delete;

    void reset();
    uint64_t position() const { return plugin_.position(handle_); }
    const int32_t *logits() const;  // [V] in the host's memory; null before the first token
    uint32_t sample(const Sampling &sampling, uint64_t step) const;
    State save() const;
    void restore(const State &state);

    // The sessions are different ones of one model.
    struct Tokens {
        DeviceSession *session;
        const uint32_t *tokens;  // [n]
        size_t n;
        int32_t *all_logits;  // [n, V] or null
    };
    static void feed(const Tokens *feeds, size_t count);

  private:
    std::shared_ptr<DeviceModel> model_;
    const DevicePlugin &plugin_;
    void *handle_ = nullptr;
    mutable std::vector<int32_t> logits_;  // [V] as last asked for
    mutable bool fetched_ = false;         // whether these are those of the last token
};

}  // namespace mi

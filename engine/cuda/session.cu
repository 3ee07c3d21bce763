// Models and sequences on the device: the plug-in of ../src/plugin.hpp. The order of operations is that of ../src/session.cpp.
//
// A model's weights are uploaded once, into one block. Sequences keep their state on the device. For tokens that are fed
// the host sends one small table (which tokens, of which sequences, where their logits go) and launches six kernels a
// layer; nothing is copied between layers, and nothing is waited for until somebody asks for logits or a token. A single
// token, which is what generation feeds, is one CUDA graph, recorded at the second: it finds in the table
// whatever changes.
#include <algorithm>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "device.cuh"
#include "plugin.hpp"

namespace mi::cuda {
namespace {

constexpr int most_rows = 256;  // tokens at a time
constexpr int logit_rows = 64;  // of those, how many read out at a time, when all logits are wanted

// ---- Errors ---------------------------------------------------------------------------------------------------------

struct Failure {
    mi_status status;
    std::string message;
};

thread_local char last_error[512] = "";

void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // it is told here, and not once more by the next launch
    throw Failure{status_of(error), std::string("CUDA: ") + what + ": " + cudaGetErrorString(error)};
}

void check(mi_status status) {
    if (status != MI_OK) throw Failure{status, launch_error()};
}

template <class Body>
mi_status guarded(Body body) noexcept {
    const auto fail = [](mi_status status, const char *message) {
        std::snprintf(last_error, sizeof last_error, "%s", message);
        return status;
    };
    try {
        body();
        return MI_OK;
    } catch (const Failure &failure) {
        return fail(failure.status, failure.message.c_str());
    } catch (const std::exception &error) {
        return fail(MI_ERR_MEMORY, error.what());
    }
}

// ---- Memory ---------------------------------------------------------------------------------------------------------

size_t elements(int a, int b = 1, int c = 1) {
    return static_cast<size_t>(a) * static_cast<size_t>(b) * static_cast<size_t>(c);
}

class Block {
  public:
    Block() = default;
    explicit Block(size_t bytes) {
        void *p = nullptr;
        check(cudaMalloc(&p, std::max(bytes, size_t{1})), "memory of the device");
        p_.reset(static_cast<uint8_t *>(p));
    }
    uint8_t *get() const { return p_.get(); }

  private:
    struct Free {
        void operator()(uint8_t *p) const { cudaFree(p); }
    };
    std::unique_ptr<uint8_t, Free> p_;
};

// Places in a block for one array after the other, each at a multiple of 256 bytes. A layout runs twice: without memory, to
// learn how much it takes, and with it.
class Places {
  public:
    explicit Places(const void *base) : base_(reinterpret_cast<uintptr_t>(base)) {}

    template <class T>
    T *take(size_t n) {
        T *place = reinterpret_cast<T *>(base_ + bytes_);  // a number until there is memory
        bytes_ += (n * sizeof(T) + 255) & ~size_t{255};
        return place;
    }
    size_t bytes() const { return bytes_; }

  private:
    uintptr_t base_;
    size_t bytes_ = 0;
};

// ---- Weights --------------------------------------------------------------------------------------------------------

struct DeviceLayer {
    const int8_t *norm1, *norm2;
    mi_matrix in_proj, out_proj;
    mi_conv conv;
    mi_scan scan;
};

// Puts a model's arrays into a block: into a copy of it on the host first, so that one transfer does.
class Upload {
  public:
    explicit Upload(const void *base) : places_(base), base_(reinterpret_cast<uintptr_t>(base)) {}

    template <class T>
    const T *put(const T *data, size_t n) {
        const T *place = places_.take<T>(n);
        std::copy_n(data, n, reinterpret_cast<T *>(image(place)));
        return place;
    }

    // Rows of a matrix, each continued with zeros.
    const void *put_rows(const void *data, int rows, int bytes, int stride) {
        const uint8_t *place = places_.take<uint8_t>(elements(rows, stride)),
                      *from = static_cast<const uint8_t *>(data);
        uint8_t *to = image(place);
        for (int i = 0; i < rows; ++i) std::copy_n(from + elements(i, bytes), bytes, to + elements(i, stride));
        return place;
    }

    mi_matrix put(const Linear &p) {
        const int shift = p.ternary ? 2 : 0, bytes = p.ternary ? (p.cols + 3) >> 2 : p.cols;
        return {put_rows(p.weight, p.rows, bytes, padded(p.cols) >> shift),
                put(p.mul, elements(p.rows)),
                p.rows,
                p.cols,
                p.shift,
                p.ternary};
    }

    const std::vector<uint8_t> &bytes() const { return image_; }

  private:
    // Where in the copy the end of what was taken, beginning at `place`, lies.
    uint8_t *image(const void *place) {
        image_.resize(places_.bytes());
        return image_.data() + (reinterpret_cast<uintptr_t>(place) - base_);
    }

    Places places_;
    uintptr_t base_;
    std::vector<uint8_t> image_;
};

// ---- A model --------------------------------------------------------------------------------------------------------

// The table of a pass. Tokens, spans and the rest lie one after the other for as many rows as there are.
struct Table {
    uint32_t *tokens;      // [rows]
    int32_t *span_of_row;  // [rows]
    mi_span *spans;        // [spans]
    int32_t *wanted;       // [wanted] rows whose logits are wanted
    int32_t **targets;     // [wanted] where they go

    Table(uint8_t *base, size_t rows) {
        Places places(base);
        tokens = places.take<uint32_t>(rows);
        span_of_row = places.take<int32_t>(rows);
        spans = places.take<mi_span>(rows);
        wanted = places.take<int32_t>(rows);
        targets = places.take<int32_t *>(rows);
        bytes = places.bytes();
    }
    size_t bytes;
};

// What tokens compute on their way, [rows] of each.
struct Workspace {
    uint8_t *table;     // a Table
    int32_t *r;         // [rows, D] Q8, the residual
    int8_t *u;          // [rows, padded(D)] Q5, the residual normed
    int16_t *z_xbc_dt;  // [rows, 2E+2N+H] Q8
    int8_t *x;          // [rows, E] Q5
    int8_t *bc;         // [rows, 2, state_stride] Q3
    int32_t *o;         // [rows, E] Q10
    int8_t *v;          // [rows, padded(E)] Q5, o normed
    int32_t *logits;    // [logit_rows, V]
    size_t bytes;

    Workspace(uint8_t *base, const Config &c) {
        Places p(base);
        const int D = c.d_model, E = c.d_inner();
        table = p.take<uint8_t>(Table(nullptr, most_rows).bytes);
        r = p.take<int32_t>(elements(most_rows, D));
        u = p.take<int8_t>(elements(most_rows, padded(D)));
        z_xbc_dt = p.take<int16_t>(elements(most_rows, c.d_in_proj()));
        x = p.take<int8_t>(elements(most_rows, E));
        bc = p.take<int8_t>(elements(most_rows, 2, launch_state_stride(c.d_state)));
        o = p.take<int32_t>(elements(most_rows, E));
        v = p.take<int8_t>(elements(most_rows, padded(E)));
        logits = p.take<int32_t>(elements(logit_rows, c.vocab_size));
        bytes = p.bytes();
    }
};

class Stream {
  public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream"); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream &) = delete;
    operator cudaStream_t() const { return stream_; }
    void wait() const { check(cudaStreamSynchronize(stream_), "computing"); }

  private:
    cudaStream_t stream_ = nullptr;
};

class Graph {
  public:
    // Of what `record` puts into the stream.
    template <class Record>
    Graph(cudaStream_t stream, Record record) {
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording a graph");
        cudaGraph_t graph = nullptr;
        try {
            record();
        } catch (...) {
            cudaStreamEndCapture(stream, &graph);
            if (graph) cudaGraphDestroy(graph);
            throw;
        }
        const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
        const cudaError_t made = ended == cudaSuccess ? cudaGraphInstantiate(&graph_, graph, 0) : ended;
        if (graph) cudaGraphDestroy(graph);
        check(made, "recording a graph");
    }
    ~Graph() {
        if (graph_) cudaGraphExecDestroy(graph_);
    }
    Graph(const Graph &) = delete;
    void launch(cudaStream_t stream) const { check(cudaGraphLaunch(graph_, stream), "launching a graph"); }

  private:
    cudaGraphExec_t graph_ = nullptr;
};

struct Sequence;

class DeviceModel {
  public:
    explicit DeviceModel(const DeviceWeights &weights)
        : config(*weights.config),
          weights_(place(weights, nullptr).size()),
          work_block_(Workspace(nullptr, config).bytes),
          work_(work_block_.get(), config) {
        const std::vector<uint8_t> image = place(weights, weights_.get());
        check(cudaMemcpyAsync(weights_.get(), image.data(), image.size(), cudaMemcpyHostToDevice, stream),
              "uploading the weights");
        stream.wait();
    }

    void feed(const DeviceFeed *feeds, size_t count);

    const Config config;
    Stream stream;
    std::mutex lock;  // of stream and workspace: sequences of several threads share them

  private:
    // Lays the weights out in a block at `base`, notes where they are, and gives the block's contents.
    std::vector<uint8_t> place(const DeviceWeights &weights, uint8_t *base) {
        const Config &c = config;
        const int D = c.d_model, E = c.d_inner(), H = c.n_heads, channels = c.d_conv();
        Upload up(base);
        layers_.clear();
        embedding_ = {up.put_rows(weights.embedding, c.vocab_size, D, padded(D)), nullptr, c.vocab_size, D, 0, 0};
        norm_f_ = up.put(weights.norm_f, elements(D));
        for (int l = 0; l < c.n_layers; ++l) {
            const Layer &from = weights.layers[l];
            DeviceLayer to;
            to.norm1 = up.put(from.norm1, elements(D));
            to.in_proj = up.put(from.in_proj);
            to.conv = {up.put(from.conv_weight, elements(channels, 4)),
                       up.put(from.conv_bias, elements(channels)),
                       E,
                       c.d_state,
                       static_cast<int32_t>(c.activation),
                       c.rotation};
            to.scan = {up.put(from.scan_k, elements(H)),
                       up.put(from.scan_A, elements(H)),
                       up.put(from.scan_base, elements(H)),
                       up.put(from.scan_skip, elements(H)),
                       H,
                       c.head_dim,
                       c.d_state,
                       static_cast<int32_t>(c.scan),
                       static_cast<int32_t>(c.gate)};
            to.norm2 = up.put(from.norm2, elements(E));
            to.out_proj = up.put(from.out_proj);
            layers_.push_back(to);
        }
        return up.bytes();
    }

    void layers(const Table &table, int rows, int spans);
    void read_out(const Table &table, int first, int n);

    std::vector<DeviceLayer> layers_;
    mi_matrix embedding_{};
    const int8_t *norm_f_ = nullptr;
    Block weights_, work_block_;
    const Workspace work_;
    std::unique_ptr<Graph> one_token_;
    bool one_token_seen_ = false;  // CUDA loads a kernel at its first launch, which should not fall into a recording
};

// ---- A sequence -----------------------------------------------------------------------------------------------------

struct Sequence {
    DeviceModel &model;
    const size_t past_elements, h_elements, logits_elements;
    Block block;
    int16_t *past[2];  // [L, 3, E+2N] each: what is remembered, and what the next pass will write
    int32_t *h;        // [L, H, N, P] Q14
    int32_t *logits;   // [V] after the last token
    uint32_t *token;   // [1] that was sampled
    int now = 0;       // which of `past`
    uint64_t position = 0;
    bool lost = false;  // the device failed while it moved on

    explicit Sequence(DeviceModel &m)
        : model(m),
          past_elements(elements(m.config.n_layers, 3, m.config.d_conv())),
          h_elements(elements(m.config.n_layers, m.config.d_inner(), m.config.d_state)),
          logits_elements(elements(m.config.vocab_size)) {
        block = Block(place(nullptr));
        place(block.get());
        reset();
    }

    size_t place(uint8_t *base) {
        Places p(base);
        for (int16_t *&half : past) half = p.take<int16_t>(past_elements);
        h = p.take<int32_t>(h_elements);
        logits = p.take<int32_t>(logits_elements);
        token = p.take<uint32_t>(1);
        return p.bytes();
    }

    void clear(void *p, size_t bytes) { check(cudaMemsetAsync(p, 0, bytes, model.stream), "clearing a state"); }

    void reset() {
        lost = true;
        clear(past[now], past_elements * sizeof *past[now]);
        clear(h, h_elements * sizeof *h);
        position = 0, lost = false;
    }

    template <class T>
    void download(T *to, const T *from, size_t n) const {
        check(cudaMemcpyAsync(to, from, n * sizeof(T), cudaMemcpyDeviceToHost, model.stream),
              "reading from the device");
    }
    template <class T>
    void upload(T *to, const T *from, size_t n) const {
        check(cudaMemcpyAsync(to, from, n * sizeof(T), cudaMemcpyHostToDevice, model.stream), "writing to the device");
    }

    void use() const {
        if (lost) throw Failure{MI_ERR_DEVICE, "the device failed while this sequence was fed: its state is lost"};
    }
};

Sequence &sequence(void *session) { return *static_cast<Sequence *>(session); }

// ---- A pass ---------------------------------------------------------------------------------------------------------

// §8 for every layer. All is in the table and the workspace, so that a recorded launch can serve again.
void DeviceModel::layers(const Table &table, int rows, int spans) {
    const Config &c = config;
    const Workspace &w = work_;
    const int D = c.d_model, E = c.d_inner(), stride = c.d_in_proj();
    const int16_t *z = w.z_xbc_dt, *xbc = z + E, *dt = xbc + c.d_conv();
    check(launch_embedding(static_cast<const int8_t *>(embedding_.weight), padded(D), table.tokens, rows, D,
                           c.embed_mul, w.r, stream));
    for (size_t l = 0; l < layers_.size(); ++l) {
        const DeviceLayer &layer = layers_[l];
        const uint64_t past_offset = l * elements(3, c.d_conv()), h_offset = l * elements(E, c.d_state);
        check(launch_bitshift_norm(w.r, nullptr, rows, layer.norm1, D, c.norm_mantissa, w.u, stream));
        check(launch_bitlinear(&layer.in_proj, w.u, rows, w.z_xbc_dt, stream));
        check(launch_conv1d_step(&layer.conv, xbc, stride, table.spans, table.span_of_row, rows, past_offset, w.x, w.bc,
                                 stream));
        check(launch_dyadic_mamba(&layer.scan, table.spans, spans, w.x, w.bc, z, dt, stride, h_offset, w.o, stream));
        check(launch_bitshift_norm(w.o, nullptr, rows, layer.norm2, E, c.norm_mantissa, w.v, stream));
        check(launch_bitlinear_residual(&layer.out_proj, w.v, rows, w.r, stream));
    }
}

// §9 for the wanted rows first ... first + n - 1.
void DeviceModel::read_out(const Table &table, int first, int n) {
    const Workspace &w = work_;
    check(
        launch_bitshift_norm(w.r, table.wanted + first, n, norm_f_, config.d_model, config.norm_mantissa, w.u, stream));
    check(launch_logits(&embedding_, w.u, n, table.targets + first, stream));
}

// Tokens of all, as many at a time as there are rows. Those whose logits are wanted: the last of every feed, which its sequence
// keeps, and where the host wants them all, the others too.
void DeviceModel::feed(const DeviceFeed *feeds, size_t count) {
    const std::lock_guard<std::mutex> hold(lock);
    std::vector<size_t> fed(count);  // tokens so far
    struct Copy {                    // of a row's logits to the host
        int wanted;
        int32_t *from, *to;
    };
    std::vector<uint8_t> image;
    bool waited_for = false;
    for (;;) {
        std::vector<Sequence *> moving;
        std::vector<mi_span> spans;
        std::vector<uint32_t> tokens;
        std::vector<int32_t> span_of_row, wanted;
        std::vector<int32_t *> targets;
        std::vector<Copy> copies;
        for (size_t i = 0; i < count && tokens.size() < most_rows; ++i) {
            const DeviceFeed &feed = feeds[i];
            Sequence &s = sequence(feed.session);
            const size_t n = std::min(feed.n - fed[i], most_rows - tokens.size());
            if (n == 0) continue;
            spans.push_back({static_cast<int32_t>(tokens.size()), static_cast<int32_t>(n), s.position, s.past[s.now],
                             s.past[1 - s.now], s.h});
            moving.push_back(&s);
            for (size_t t = fed[i]; t < fed[i] + n; ++t) {
                const bool last = t + 1 == feed.n;
                if (last || feed.all_logits) {
                    const int number = static_cast<int>(wanted.size());
                    int32_t *target =
                        last ? s.logits : work_.logits + elements(number & (logit_rows - 1), config.vocab_size);
                    if (feed.all_logits)
                        copies.push_back({number, target, feed.all_logits + t * elements(config.vocab_size)});
                    targets.push_back(target);
                    wanted.push_back(static_cast<int32_t>(tokens.size()));
                }
                tokens.push_back(feed.tokens[t]);
                span_of_row.push_back(static_cast<int32_t>(spans.size()) - 1);
            }
            fed[i] += n;
        }
        if (tokens.empty()) break;

        const Table table(work_.table, tokens.size());
        image.resize(table.bytes);
        const Table here(image.data(), tokens.size());
        std::copy(tokens.begin(), tokens.end(), here.tokens);
        std::copy(span_of_row.begin(), span_of_row.end(), here.span_of_row);
        std::copy(spans.begin(), spans.end(), here.spans);
        std::copy(wanted.begin(), wanted.end(), here.wanted);
        std::copy(targets.begin(), targets.end(), here.targets);
        for (Sequence *s : moving) s->lost = true;  // unless all that follows succeeds
        check(cudaMemcpyAsync(work_.table, image.data(), image.size(), cudaMemcpyHostToDevice, stream),
              "writing to the device");
        const int rows = static_cast<int>(tokens.size());
        const auto download = [&](const Copy &copy) {
            check(cudaMemcpyAsync(copy.to, copy.from, elements(config.vocab_size) * sizeof(int32_t),
                                  cudaMemcpyDeviceToHost, stream),
                  "reading from the device");
            waited_for = true;
        };
        if (rows == 1 && wanted.size() == 1) {
            if (std::exchange(one_token_seen_, true) && !one_token_)
                one_token_ = std::make_unique<Graph>(stream, [&] { layers(table, 1, 1), read_out(table, 0, 1); });
            if (one_token_)
                one_token_->launch(stream);
            else
                layers(table, 1, 1), read_out(table, 0, 1);
            for (const Copy &copy : copies) download(copy);
        } else {
            layers(table, rows, static_cast<int>(spans.size()));
            for (int first = 0; first < static_cast<int>(wanted.size()); first += logit_rows) {
                const int n = std::min(logit_rows, static_cast<int>(wanted.size()) - first);
                read_out(table, first, n);
                for (const Copy &copy : copies)
                    if (copy.wanted >= first && copy.wanted < first + n) download(copy);
            }
        }
        for (size_t i = 0; i < moving.size(); ++i) {
            Sequence &s = *moving[i];
            s.position += static_cast<uint64_t>(spans[i].n), s.now = 1 - s.now, s.lost = false;
        }
    }
    if (waited_for) stream.wait();  // so that the host's memory holds the logits
}

// ---- The plug-in ----------------------------------------------------------------------------------------------------

// With the lock of the sequence's model.
template <class Body>
mi_status of_sequence(void *session, Body body) {
    return guarded([&] {
        Sequence &s = sequence(session);
        const std::lock_guard<std::mutex> hold(s.model.lock);
        body(s);
    });
}

const DevicePlugin plugin = {
    .version = plugin_version,
    .engine = engine_version,
    .last_error = [] { return static_cast<const char *>(last_error); },
    .model_new =
        [](const DeviceWeights &weights, void **out) {
            return guarded([&] {
                int devices = 0;
                const cudaError_t error = cudaGetDeviceCount(&devices);
                if (error != cudaSuccess || devices == 0)
                    throw Failure{MI_ERR_DEVICE,
                                  std::string("no GPU can be used: ") +
                                      cudaGetErrorString(error == cudaSuccess ? cudaErrorNoDevice : error)};
                *out = new DeviceModel(weights);
            });
        },
    .model_free = [](void *model) { delete static_cast<DeviceModel *>(model); },
    .session_new = [](void *model,
                      void **out) { return guarded([&] { *out = new Sequence(*static_cast<DeviceModel *>(model)); }); },
    .session_free =
        [](void *session) {
            if (!session) return;
            cudaStreamSynchronize(sequence(session).model.stream);  // nothing may still be at work on it
            delete &sequence(session);
        },
    .reset = [](void *session) { return of_sequence(session, [](Sequence &s) { s.reset(); }); },
    .feed =
        [](void *model, const DeviceFeed *feeds, size_t count) {
            return guarded([&] {
                for (size_t i = 0; i < count; ++i) sequence(feeds[i].session).use();
                static_cast<DeviceModel *>(model)->feed(feeds, count);
            });
        },
    .logits =
        [](void *session, int32_t *out) {
            return of_sequence(session, [&](Sequence &s) {
                s.use();
                s.download(out, s.logits, s.logits_elements);
                s.model.stream.wait();
            });
        },
    .sample =
        [](void *session, const Draw &draw, uint32_t *token) {
            return of_sequence(session, [&](Sequence &s) {
                s.use();
                const Config &c = s.model.config;
                check(launch_sampler(s.logits, c.vocab_size, draw.C, c.logit_shift, draw.top_k, draw.top_p, draw.random,
                                     s.token, s.model.stream));
                s.download(token, s.token, 1);
                s.model.stream.wait();
            });
        },
    .position = [](const void *session) { return static_cast<const Sequence *>(session)->position; },
    .save =
        [](void *session, const HostState &out) {
            return of_sequence(session, [&](Sequence &s) {
                s.use();
                s.download(out.past, s.past[s.now], s.past_elements);
                s.download(out.h, s.h, s.h_elements);
                s.download(out.logits, s.logits, s.logits_elements);
                s.model.stream.wait();
            });
        },
    .restore =
        [](void *session, const HostState &in, uint64_t position) {
            return of_sequence(session, [&](Sequence &s) {
                s.lost = true;
                s.upload(s.past[s.now], in.past, s.past_elements);
                s.upload(s.h, in.h, s.h_elements);
                s.upload(s.logits, in.logits, s.logits_elements);
                s.model.stream.wait();
                s.position = position, s.lost = false;
            });
        },
};

}  // namespace
}  // namespace mi::cuda

extern "C" __attribute__((visibility("default"))) const mi::DevicePlugin *mamba_integer_cuda_plugin() {
    return &mi::cuda::plugin;
}

#include "decoder.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace ssm_runner {
namespace {

std::vector<int64_t> sizes_of(Manifest const& manifest, int64_t rows) {
    std::vector<int64_t> out;
    for (State const& state : manifest.states) {
        out.push_back(rows * state.bytes_per_row());
    }
    return out;
}

}  // namespace

Decoder::Decoder(Device& device, Manifest const& manifest, Engine& prefill, Engine& step,
                 DecoderOptions const& options)
    : device_(device),
      manifest_(manifest),
      options_(options),
      states_(sizes_of(manifest, options.rows), options.in_place,
              [&](int64_t bytes) { return device.allocate(bytes); }),
      logits_type_(step.type(kLogits)),
      logits_(static_cast<size_t>(options.rows * manifest.vocabulary)) {
    if (prefill.type(kLogits) != logits_type_) {
        throw Error(kEngineMismatch, "the engines of step and prefill give logits of two types", "",
                    "ssm-export build BUNDLE, on this machine");
    }
    int64_t const rows = options.rows;
    int64_t const positions = manifest.all_logits ? options.max_chunk : 1;
    prefill_.engine = &prefill;
    step_.engine = &step;
    for (Port* const port : {&prefill_, &step_}) {
        int64_t const tokens = port == &step_ ? 1 : options.max_chunk;
        port->ids = device.allocate(rows * tokens * bytes_of(Type::int64));
        port->logits = device.allocate(logits_bytes(port == &step_ ? 1 : positions));
        port->lengths = device.allocate(rows * bytes_of(Type::int32));
    }
    step_ids_ = static_cast<int64_t*>(device.allocate_pinned(rows * bytes_of(Type::int64)));
    lengths_ = static_cast<int32_t*>(device.allocate_pinned(rows * bytes_of(Type::int32)));
    raw_logits_ = device.allocate_pinned(logits_bytes(1));
    set_shapes(step_, 1);
    set_lengths(step_, 1);
    reset();
}

void Decoder::reset() {
    for (size_t i = 0; i < states_.count(); ++i) {
        device_.clear(states_.past(i), states_.bytes(i));
    }
    device_.wait();
}

void Decoder::warm_up(int64_t tokens) {
    int64_t const whole = std::min(tokens, options_.max_chunk), rest = tokens % options_.max_chunk;
    for (int64_t const length : {whole, rest}) {
        if (length > 0) {
            prefill(std::vector<int64_t>(static_cast<size_t>(options_.rows * length), 0));
        }
    }
    for (int turn = 0; turn < 2; ++turn) {
        step(std::vector<int64_t>(static_cast<size_t>(options_.rows), 0));
    }
    if (options_.cuda_graph) {
        capture();
        for (int turn = 0; has_graphs() && turn < 2; ++turn) {
            step(std::vector<int64_t>(static_cast<size_t>(options_.rows), 0));
        }
    } else {
        no_graphs_ = "not wanted";
    }
    reset();
}

std::vector<float> const& Decoder::prefill(std::vector<int64_t> const& ids) {
    int64_t const rows = options_.rows;
    int64_t const tokens = static_cast<int64_t>(ids.size()) / rows;
    if (prompt_room_ < rows * tokens) {
        prompt_ = static_cast<int64_t*>(device_.allocate_pinned(rows * tokens * 8));
        prompt_room_ = rows * tokens;
    }
    for (int64_t start = 0, length = 0; start < tokens; start += length) {
        length = std::min(options_.max_chunk, tokens - start);
        // Each piece has a place of its own: the copy of the one before may not have begun.
        int64_t* const piece = prompt_ + rows * start;
        for (int64_t row = 0; row < rows; ++row) {
            std::copy_n(ids.data() + row * tokens + start, length, piece + row * length);
        }
        if (prefill_.tokens != length) {
            set_shapes(prefill_, length);
            set_lengths(prefill_, length);
        }
        device_.upload(prefill_.ids, piece, rows * length * bytes_of(Type::int64));
        bind_states(*prefill_.engine, states_.turn());
        enqueue(prefill_, "prefill");
        states_.advance();
    }
    // Of every position's logits, those of the last: one copy for each row.
    int64_t const positions = manifest_.all_logits ? prefill_.tokens : 1;
    int64_t const size = logits_bytes(1) / rows;
    for (int64_t row = 0; row < rows; ++row) {
        int64_t const at = (row * positions + positions - 1) * size;
        device_.download(static_cast<char*>(raw_logits_) + row * size,
                         prefill_.logits + static_cast<Address>(at), size);
    }
    device_.wait();
    read_logits();
    return logits_;
}

std::vector<float> const& Decoder::step(std::vector<int64_t> const& ids) {
    std::copy_n(ids.data(), options_.rows, step_ids_);
    if (has_graphs()) {
        device_.launch(graphs_[static_cast<size_t>(states_.turn())]);
    } else {
        bind_states(*step_.engine, states_.turn());
        enqueue_step();
    }
    states_.advance();
    device_.wait();
    read_logits();
    return logits_;
}

std::vector<int64_t> Decoder::greedy() const {
    std::vector<int64_t> out;
    for (int64_t row = 0; row < options_.rows; ++row) {
        float const* const begin = logits_.data() + row * manifest_.vocabulary;
        float const* const end = begin + manifest_.vocabulary;
        if (!std::all_of(begin, end, [](float logit) { return std::isfinite(logit); })) {
            throw Error(
                kRunnerFailed, text("a logit of row ", row, " is no number"), "",
                "ssm-export verify BUNDLE tells whether the graph or the engine is at fault");
        }
        out.push_back(std::max_element(begin, end) - begin);
    }
    return out;
}

// A captured run keeps the addresses that were bound, so every turn has a graph of its own.
void Decoder::capture() {
    std::vector<CudaExecutable> made;
    for (int turn = 0; turn < states_.turns(); ++turn) {
        if (!step_.engine->capturable(device_.stream())) {
            no_graphs_ = "the engine cannot be captured";
            return;
        }
        bind_states(*step_.engine, turn);
        device_.begin_capture();
        std::string refused;
        try {
            enqueue_step();
        } catch (Error const& error) {
            refused = error.what();
        }
        std::string why;
        CudaExecutable const graph = device_.end_capture(why);
        if (graph == nullptr || !refused.empty()) {
            no_graphs_ = refused.empty() ? why : refused;
            return;
        }
        made.push_back(graph);
    }
    graphs_ = made;
}

void Decoder::enqueue_step() {
    device_.upload(step_.ids, step_ids_, options_.rows * bytes_of(Type::int64));
    enqueue(step_, "step");
    device_.download(raw_logits_, step_.logits, logits_bytes(1));
}

void Decoder::enqueue(Port& port, char const* form) {
    if (!port.engine->enqueue(device_.stream())) {
        throw Error(kRunnerFailed, "the engine did not run; TensorRT's message is above",
                    text(form, " engine"), "build it again on this device");
    }
}

void Decoder::bind_states(Engine& engine, int turn) {
    for (size_t i = 0; i < states_.count(); ++i) {
        engine.bind(manifest_.states[i].name_in, states_.past(i, turn));
        engine.bind(manifest_.states[i].name_out, states_.present(i, turn));
    }
}

void Decoder::set_shapes(Port& port, int64_t tokens) {
    Engine& engine = *port.engine;
    int64_t const rows = options_.rows;
    engine.set_shape(kIds, {rows, tokens});
    engine.bind(kIds, port.ids);
    if (manifest_.ragged) {
        engine.set_shape(kLengths, {rows});
        engine.bind(kLengths, port.lengths);
    }
    for (State const& state : manifest_.states) {
        std::vector<int64_t> shape{rows};
        shape.insert(shape.end(), state.sizes.begin(), state.sizes.end());
        engine.set_shape(state.name_in, shape);
    }
    engine.bind(kLogits, port.logits);
    std::vector<int64_t> const wanted{rows, manifest_.all_logits ? tokens : 1,
                                      manifest_.vocabulary};
    if (engine.shape(kLogits) != wanted) {
        throw Error(kEngineMismatch,
                    "the engine's logits have another shape than the manifest says", "",
                    "ssm-export build BUNDLE, on this machine");
    }
    port.tokens = tokens;
}

// Every row is whole: pieces of a prompt are never padded.
void Decoder::set_lengths(Port& port, int64_t tokens) {
    if (manifest_.ragged) {
        device_.wait();
        std::fill_n(lengths_, options_.rows, static_cast<int32_t>(tokens));
        device_.upload(port.lengths, lengths_, options_.rows * bytes_of(Type::int32));
    }
}

int64_t Decoder::logits_bytes(int64_t positions) const {
    return options_.rows * positions * manifest_.vocabulary * bytes_of(logits_type_);
}

void Decoder::read_logits() {
    for (size_t i = 0; i < logits_.size(); ++i) {
        logits_[i] = element(raw_logits_, logits_type_, static_cast<int64_t>(i));
    }
}

}  // namespace ssm_runner

#include "cases.h"

#include <algorithm>

#include "check.h"
#include "decoder.h"
#include "runtime_options.h"
#include "toy_engine.h"

namespace ssm_runner {
namespace {

// What a plain loop decodes after a prompt, row after row.
std::vector<std::vector<int64_t>> truth(std::vector<std::vector<int64_t>> const& prompts,
                                        int steps) {
    std::vector<std::vector<int64_t>> out;
    for (auto const& prompt : prompts) {
        ToyState state;
        float logits[kVocabulary];
        for (int64_t const id : prompt) {
            toy_token(state, id, logits);
        }
        out.emplace_back();
        for (int i = 0; i < steps; ++i) {
            out.back().push_back(std::max_element(logits, logits + kVocabulary) - logits);
            toy_token(state, out.back().back(), logits);
        }
    }
    return out;
}

struct Setting {
    bool in_place, cuda_graph, all_logits, ragged;
    Type logits;
    int64_t rows, tokens, chunk;
};

struct Toy {
    explicit Toy(Setting const& s)
        : manifest(toy_manifest()),
          device(gpu.driver()),
          prefill(gpu, prepared(manifest, s), "prefill", s.logits, s.chunk),
          step(gpu, manifest, "step", s.logits, 1) {
        prefill.aliases = step.aliases = s.in_place;
    }

    static Manifest const& prepared(Manifest& manifest, Setting const& s) {
        manifest.all_logits = s.all_logits;
        manifest.ragged = s.ragged;
        return manifest;
    }

    FakeGpu gpu;
    Manifest manifest;
    Device device;
    ToyEngine prefill;
    ToyEngine step;
};

void decode(Setting const& s) {
    static constexpr int kSteps = 7;
    Toy toy(s);
    std::vector<std::vector<int64_t>> prompts;
    std::vector<int64_t> ids;
    for (int64_t row = 0; row < s.rows; ++row) {
        prompts.emplace_back();
        for (int64_t t = 0; t < s.tokens; ++t) {
            prompts.back().push_back((7 * t + 3 * row + 1) % kVocabulary);
        }
        ids.insert(ids.end(), prompts.back().begin(), prompts.back().end());
    }
    auto const wanted = truth(prompts, kSteps);
    Decoder decoder(toy.device, toy.manifest, toy.prefill, toy.step,
                    {s.rows, s.chunk, s.in_place, s.cuda_graph});
    decoder.warm_up(s.tokens);
    for (int time = 0; time < 2; ++time) {  // twice: a reset forgets everything
        decoder.reset();
        decoder.prefill(ids);
        for (int i = 0; i < kSteps; ++i) {
            std::vector<int64_t> const chosen = decoder.greedy();
            for (int64_t row = 0; row < s.rows; ++row) {
                auto const r = static_cast<size_t>(row);
                if (chosen[r] != wanted[r][static_cast<size_t>(i)]) {
                    throw std::runtime_error(text(
                        "row ", row, ", step ", i, ": ", chosen[r], " and not ",
                        wanted[r][static_cast<size_t>(i)], " with in_place ", s.in_place,
                        ", graph ", s.cuda_graph, ", all ", s.all_logits, ", ragged ", s.ragged,
                        ", rows ", s.rows, ", tokens ", s.tokens, ", chunk ", s.chunk));
                }
            }
            decoder.step(chosen);
        }
    }
    if (decoder.has_graphs() != s.cuda_graph) {
        throw std::runtime_error("a CUDA graph too few or too many: " + decoder.no_graphs());
    }
}

std::string said(Setting const& s, void (*change)(Toy&)) {
    try {
        Toy toy(s);
        change(toy);
        Decoder decoder(toy.device, toy.manifest, toy.prefill, toy.step,
                        {s.rows, s.chunk, s.in_place, s.cuda_graph});
        decoder.warm_up(s.tokens);
        decoder.prefill(std::vector<int64_t>(static_cast<size_t>(s.rows * s.tokens), 1));
        decoder.step(decoder.greedy());
        return decoder.has_graphs() ? "graphs" : "no graphs: " + decoder.no_graphs();
    } catch (std::exception const& error) {
        return error.what();
    }
}

}  // namespace

int decode_every_way() {
    int count = 0;
    for (int bits = 0; bits < 32; ++bits) {
        for (int64_t const rows : {1, 3}) {
            for (int64_t const tokens : {1, 2, 7, 8}) {
                for (int64_t const chunk : {1, 2, 3, 8}) {
                    decode({(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0,
                            (bits & 16) != 0 ? Type::bfloat16 : Type::float32, rows, tokens,
                            chunk});
                    ++count;
                }
            }
        }
    }
    return count;
}

std::vector<std::string> history_of(bool in_place, bool cuda_graph) {
    Toy toy({in_place, cuda_graph, false, false, Type::float32, 1, 5, 2});
    Decoder decoder(toy.device, toy.manifest, toy.prefill, toy.step, {1, 2, in_place, cuda_graph});
    decoder.warm_up(5);
    toy.gpu.history.push_back("warm");
    decoder.prefill({1, 2, 3, 4, 5});
    for (int i = 0; i < 3; ++i) {
        decoder.step(decoder.greedy());
    }
    return toy.gpu.history;
}

std::vector<std::string> failures() {
    Setting const s{false, true, false, false, Type::float32, 1, 3, 2};
    std::vector<std::string> out;
    out.push_back("no memory: " + said(s, [](Toy& toy) { toy.gpu.failures["allocate"] = 2; }));
    out.push_back("not capturable: " + said(s, [](Toy& toy) { toy.step.can_be_captured = false; }));
    out.push_back("capture fails: " +
                  said(s, [](Toy& toy) { toy.gpu.failures["end_capture"] = 9; }));
    out.push_back("no instance: " + said(s, [](Toy& toy) { toy.gpu.failures["instantiate"] = 9; }));
    out.push_back("launch fails: " +
                  said(s, [](Toy& toy) { toy.gpu.failures["launch_graph"] = 9; }));
    out.push_back("engine fails: " + said(s, [](Toy& toy) { toy.prefill.runs = false; }));
    out.push_back("GPU fails: " + said(s, [](Toy& toy) { toy.gpu.failures["wait"] = 9; }));
    out.push_back("one buffer for an engine that needs two: " +
                  said({true, true, false, false, Type::float32, 1, 3, 2},
                       [](Toy& toy) { toy.prefill.aliases = toy.step.aliases = false; }));
    for (int const error : {0, 35}) {
        FakeGpu gpu;
        gpu.devices = 0;
        gpu.failures["initialize"] = error;
        try {
            Device const device(gpu.driver());
        } catch (Error const& found) {
            out.push_back(text(error == 0 ? "no GPU: " : "old driver: ", found.what(), " ",
                               found.exit_status()));
        }
    }
    FakeGpu gpu;
    {
        Device device(gpu.driver());
        device.allocate(8);
        device.allocate_pinned(8);
    }
    out.push_back(text("left over: ", gpu.allocations.size() + gpu.pinned.size() +
                                          gpu.graphs.size() + static_cast<size_t>(gpu.contexts) +
                                          static_cast<size_t>(gpu.streams)));
    return out;
}

namespace {

// The classes of TensorRT 10.3, and those of TensorRT-RTX, as far as contexts are made with them.
struct PlainContext {};
struct PlainEngine {
    PlainContext made;
    PlainContext* createExecutionContext() { return &made; }
};
struct RtxContext {
    int strategy = 0;
    bool isStreamCapturable(CudaStream) const { return strategy == 1; }
};
enum class Specialization { kLAZY = 0, kEAGER = 1 };
struct RtxConfig {
    Specialization strategy = Specialization::kLAZY;
    Specialization getDynamicShapesKernelSpecializationStrategy() const { return strategy; }
    void setDynamicShapesKernelSpecializationStrategy(Specialization wanted) { strategy = wanted; }
};
struct RtxEngine {
    RtxContext made;
    RtxConfig* createRuntimeConfig() { return new RtxConfig; }
    RtxContext* createExecutionContext(RtxConfig* config = nullptr) {
        made.strategy = config == nullptr ? -1 : static_cast<int>(config->strategy);
        return &made;
    }
};

}  // namespace

std::vector<std::string> runtime_options() {
    PlainEngine plain;
    RtxEngine rtx;
    bool const plain_captured = can_capture(*create_context(plain), CudaStream{});
    RtxContext const* const made = create_context(rtx);
    return {
        text("plain: capturable ", plain_captured),
        text("rtx: strategy ", made->strategy, ", capturable ", can_capture(*made, CudaStream{}),
             ", lazy ", can_capture(RtxContext{}, CudaStream{}))};
}

}  // namespace ssm_runner

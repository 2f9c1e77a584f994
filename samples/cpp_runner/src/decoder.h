// Prefill and decode: what is bound where, in which order it goes to the GPU, and what comes back.
//
// The states never leave the device. A step is one launch of a CUDA graph that holds the copy of
// the ids, the engine and the copy of the logits; where past and present alternate there are two
// graphs.
#pragma once

#include <string>
#include <vector>

#include "cuda.h"
#include "engine.h"
#include "manifest.h"
#include "state_buffers.h"

namespace ssm_runner {

struct DecoderOptions {
    int64_t rows = 1;       // B, the batch
    int64_t max_chunk = 1;  // longest piece of a prompt that the prefill engine takes
    bool in_place = false;  // one buffer for the past and the present of a state
    bool cuda_graph = true;
};

class Decoder {
public:
    // Allocates the states and sets the step engine's shapes.
    Decoder(Device& device, Manifest const& manifest, Engine& prefill, Engine& step,
            DecoderOptions const& options);

    // Runs both engines in every shape that a prompt of so many tokens needs, and captures the
    // graphs, so that nothing is compiled or allocated later. Leaves the states at their beginning.
    void warm_up(int64_t tokens);

    // The states at their beginning.
    void reset();

    // Feeds ids (B,T), row after row; gives the logits (B,V) after the last token.
    std::vector<float> const& prefill(std::vector<int64_t> const& ids);

    // Feeds ids (B); gives the logits (B,V).
    std::vector<float> const& step(std::vector<int64_t> const& ids);

    // The largest logit of every row: (B). Throws Error where one is no number.
    std::vector<int64_t> greedy() const;

    StateBuffers const& states() const { return states_; }
    bool has_graphs() const { return !graphs_.empty(); }
    // Why there are none; empty where there are.
    std::string const& no_graphs() const { return no_graphs_; }

private:
    struct Port {
        Engine* engine;
        Address ids;
        Address logits;
        Address lengths;
        int64_t tokens;  // the length that its shapes are set to
    };

    void set_shapes(Port& port, int64_t tokens);
    void bind_states(Engine& engine, int turn);
    void enqueue(Port& port, char const* form);
    void enqueue_step();
    void capture();
    void set_lengths(Port& port, int64_t tokens);
    int64_t logits_bytes(int64_t positions) const;
    void read_logits();

    Device& device_;
    Manifest const& manifest_;
    DecoderOptions options_;
    StateBuffers states_;
    Type logits_type_;
    std::vector<float> logits_;
    Port prefill_{};
    Port step_{};
    int64_t* step_ids_;          // pinned, (B)
    int32_t* lengths_;           // pinned, (B)
    void* raw_logits_;           // pinned, (B,V) in the engine's type
    int64_t* prompt_ = nullptr;  // pinned
    int64_t prompt_room_ = 0;
    std::vector<CudaExecutable> graphs_;  // one for each turn of the buffers
    std::string no_graphs_;
};

}  // namespace ssm_runner

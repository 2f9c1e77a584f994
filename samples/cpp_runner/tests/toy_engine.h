// A small recurrent model behind the interface of an engine, computed on the fake GPU, and the same
// model as a plain loop. With h (B,3) and s (B,2) the states and x the id of a token:
//
//     h' = h/2 + (x mod 5, x mod 3, 1);  s' = (s₁, x);  logit_v = cos(v + h'₀ + 2h'₁ + 3h'₂ + s₀)
#pragma once

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "engine.h"
#include "error.h"
#include "fake_cuda.h"
#include "manifest.h"

namespace ssm_runner {

inline constexpr int64_t kVocabulary = 11;

struct ToyState {
    float h[3] = {0, 0, 0};
    float s[2] = {0, 0};
};

inline void toy_token(ToyState& state, int64_t id, float* logits) {
    float const old = state.s[0], x = static_cast<float>(id);
    float const drive[3] = {std::fmod(x, 5.0F), std::fmod(x, 3.0F), 1};
    float angle = old;
    for (int i = 0; i < 3; ++i) {
        state.h[i] = state.h[i] / 2 + drive[i];
        angle += static_cast<float>(i + 1) * state.h[i];
    }
    state.s[0] = state.s[1];
    state.s[1] = x;
    for (int64_t v = 0; v < kVocabulary; ++v) {
        logits[v] = std::cos(static_cast<float>(v) + angle);
    }
}

inline Manifest toy_manifest() {
    Manifest out;
    out.vocabulary = kVocabulary;
    out.layers = 1;
    out.precision = out.state_type = "fp32";
    out.states = {{"past_h", "present_h", Type::float32, {3}},
                  {"past_s", "present_s", Type::float32, {2}}};
    return out;
}

class ToyEngine : public Engine {
public:
    ToyEngine(FakeGpu& gpu, Manifest const& manifest, std::string const& form, Type logits,
              int64_t longest)
        : gpu_(gpu), manifest_(manifest), form_(form), logits_(logits), longest_(longest) {}

    bool can_be_captured = true;
    bool runs = true;
    bool aliases = false;  // past and present may be one buffer

    Type type(std::string const& tensor) const override {
        return tensor == kIds ? Type::int64 : tensor == kLogits ? logits_ : Type::float32;
    }

    std::vector<int64_t> shape(std::string const&) const override {
        return {shapes_.at(kIds)[0], manifest_.all_logits ? shapes_.at(kIds)[1] : 1, kVocabulary};
    }

    void set_shape(std::string const& input, std::vector<int64_t> const& shape) override {
        if (input == kIds && shape.at(1) > longest_) {
            throw Error(kEngineMismatch, text("a length of ", shape[1]), form_, "");
        }
        shapes_[input] = shape;
    }

    void bind(std::string const& tensor, Address address) override { bound_[tensor] = address; }

    bool capturable(CudaStream) const override { return can_be_captured; }

    // Like a real engine: with what was bound when it was put on the stream.
    bool enqueue(CudaStream) override {
        if (runs) {
            gpu_.put(form_, [this, bound = bound_, shapes = shapes_] { compute(bound, shapes); });
        }
        return runs;
    }

private:
    using Bound = std::map<std::string, Address>;
    using Shapes = std::map<std::string, std::vector<int64_t>>;

    template <typename Number>
    Number* at(Bound const& bound, std::string const& tensor, int64_t count) const {
        Address const address = bound.at(tensor);
        if (!gpu_.holds(address, static_cast<size_t>(count) * sizeof(Number))) {
            throw std::runtime_error("'" + tensor + "' is bound to too little memory");
        }
        return reinterpret_cast<Number*>(address);
    }

    void compute(Bound const& bound, Shapes const& shapes) const {
        int64_t const rows = shapes.at(kIds)[0], tokens = shapes.at(kIds)[1];
        int64_t const positions = manifest_.all_logits ? tokens : 1;
        int64_t const* const ids = at<int64_t>(bound, kIds, rows * tokens);
        char* const logits =
            at<char>(bound, kLogits, rows * positions * kVocabulary * bytes_of(logits_));
        float const* const past_h = at<float>(bound, "past_h", rows * 3);
        float const* const past_s = at<float>(bound, "past_s", rows * 2);
        float* const present_h = at<float>(bound, "present_h", rows * 3);
        float* const present_s = at<float>(bound, "present_s", rows * 2);
        if (manifest_.ragged) {
            for (int64_t row = 0; row < rows; ++row) {
                if (at<int32_t>(bound, kLengths, rows)[row] != tokens) {
                    throw std::runtime_error("a length is not that of the piece");
                }
            }
        }
        if (!aliases) {  // an engine that writes before it has read everything
            std::fill_n(present_h, rows * 3, NAN);
            std::fill_n(present_s, rows * 2, NAN);
        }
        for (int64_t row = 0; row < rows; ++row) {
            ToyState state;
            std::copy_n(past_h + row * 3, 3, state.h);
            std::copy_n(past_s + row * 2, 2, state.s);
            for (int64_t t = 0; t < tokens; ++t) {
                float found[kVocabulary];
                toy_token(state, ids[row * tokens + t], found);
                int64_t const position = manifest_.all_logits ? t : 0;
                for (int64_t v = 0; v < kVocabulary; ++v) {
                    store(logits, (row * positions + position) * kVocabulary + v, found[v]);
                }
            }
            std::copy_n(state.h, 3, present_h + row * 3);
            std::copy_n(state.s, 2, present_s + row * 2);
        }
    }

    void store(char* logits, int64_t index, float value) const {
        char* const to = logits + index * bytes_of(logits_);
        if (logits_ == Type::float32) {
            std::memcpy(to, &value, 4);
        } else {  // bfloat16: the upper half
            std::memcpy(to, reinterpret_cast<char const*>(&value) + 2, 2);
        }
    }

    FakeGpu& gpu_;
    Manifest const& manifest_;
    std::string form_;
    Type logits_;
    int64_t longest_;
    Shapes shapes_;
    Bound bound_;
};

}  // namespace ssm_runner

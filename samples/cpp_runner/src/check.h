// Whether the engines choose the tokens that PyTorch chose: the recorded case `generate`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "decoder.h"
#include "manifest.h"

namespace ssm_runner {

// Greedy tokens of the reference. `margins` are top1 − top2 of its logits, which near a tie say
// that either token is right.
struct Greedy {
    std::vector<int64_t> ids;
    std::vector<int64_t> tokens;
    std::vector<float> margins;
};

Greedy read_greedy(Manifest const& manifest);

// The margin below which either token is right, from the RMS of the reference's logits: the table
// of ssm_export/verification/gates.py.
double near_tie(Manifest const& manifest, std::string const& runner, double rms);

// RMS of the logits of the recorded prompts.
double logits_rms(Manifest const& manifest);

struct Agreement {
    int64_t compared = 0;
    int64_t near_ties = 0;
    int64_t wrong = 0;
    std::string first;  // what differed first
};

// Feeds the reference's own tokens, so that every position is held against it and not only those
// before the first near tie.
Agreement compare_greedy(Decoder& decoder, Greedy const& greedy, double near_tie);

}  // namespace ssm_runner

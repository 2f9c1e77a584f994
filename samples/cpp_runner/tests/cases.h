// What the test program can be asked.
#pragma once

#include <string>
#include <vector>

namespace ssm_runner {

// Decodes with a toy model in every way of binding, and holds the tokens against a plain loop.
// Gives how many cases there were; throws where one differs.
int decode_every_way();

// What happened on the GPU, in order, in a prefill of 5 tokens in pieces of 2 and 3 steps.
std::vector<std::string> history_of(bool in_place, bool cuda_graph);

// What happens where something fails, in one line each.
std::vector<std::string> failures();

// Which members of TensorRT-RTX's classes are used where they are there.
std::vector<std::string> runtime_options();

}  // namespace ssm_runner

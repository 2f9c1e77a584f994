// What the decoder asks of an engine. TensorRT is behind it in trt.cpp, and a toy model in tests/.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda.h"
#include "tensor_type.h"

namespace ssm_runner {

inline constexpr char kIds[] = "input_ids";
inline constexpr char kLengths[] = "sequence_lengths";
inline constexpr char kLogits[] = "logits";

// An execution context: an engine on one of its optimization profiles.
class Engine {
public:
    virtual ~Engine() = default;
    virtual Type type(std::string const& tensor) const = 0;
    // The shape of an output after those of all inputs are set.
    virtual std::vector<int64_t> shape(std::string const& output) const = 0;
    // These throw Error where the engine refuses.
    virtual void set_shape(std::string const& input, std::vector<int64_t> const& shape) = 0;
    virtual void bind(std::string const& tensor, Address address) = 0;
    // Whether it can be captured in a CUDA graph; `enqueue` must have run before.
    virtual bool capturable(CudaStream stream) const = 0;
    // Puts one run on the stream; false where that failed.
    virtual bool enqueue(CudaStream stream) = 0;
};

}  // namespace ssm_runner

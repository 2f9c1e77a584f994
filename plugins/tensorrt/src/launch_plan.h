// A section's launch plan at given sizes: grids, integers and workspace offsets worked out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "binding.h"
#include "container.h"
#include "module_cache.h"
#include "persistent.h"

namespace ssm_export {

// Bytes of scratch memory that a call of these sizes needs, each buffer aligned.
size_t workspace_bytes(Section const& section, Sizes const& sizes);

// Everything that a call needs but the addresses. Launching it neither allocates nor waits.
class LaunchPlan {
public:
    // Throws Error: no case takes these sizes, or a grid or an integer is beyond what CUDA takes.
    LaunchPlan(Section const& section, LoadedKernels const& kernels,
               PersistentMemory const& persistent, Sizes const& sizes,
               Positions const& positions);
    LaunchPlan(LaunchPlan&&) = default;
    LaunchPlan(LaunchPlan const&) = delete;  // its parameters are addresses of its own values
    LaunchPlan& operator=(LaunchPlan const&) = delete;

    // Launches on a stream. Throws Error: a misaligned tensor, or what the driver says.
    void launch(void const* const* inputs, void* const* outputs, void* workspace,
                CudaStream stream);

private:
    struct Source {
        Argument::Kind kind;
        size_t index;     // of the node's input or output, or the workspace's offset
        size_t operand;   // of the section's input or output, for messages
    };
    struct Kernel {
        Function function;
        std::string name;
        unsigned grid[3];
        size_t first;  // among sources_ and values_
        size_t count;
        size_t first_parameter;
    };
    void const* address(Source const& source, void const* const* inputs, void* const* outputs,
                        char const* workspace) const;

    Section const& section_;
    std::vector<Kernel> kernels_;
    std::vector<Source> sources_;
    std::vector<uint64_t> values_;   // one per source, and last a null pointer
    std::vector<void*> parameters_;  // the addresses of values
};

}  // namespace ssm_export

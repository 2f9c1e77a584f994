// Kernels that are loaded on a GPU: one copy per context, for as long as a plugin uses it.
#pragma once

#include <memory>
#include <vector>

#include "container.h"
#include "driver.h"

namespace ssm_export {

// A kernel ready to launch.
struct Function {
    CudaFunction handle = nullptr;
    unsigned threads = 0;
    unsigned shared_memory = 0;
    int extra_pointers = 0;
};

// The kernels of a section in one context, by image index.
class LoadedKernels {
public:
    LoadedKernels() = default;
    LoadedKernels(LoadedKernels const&) = delete;
    LoadedKernels& operator=(LoadedKernels const&) = delete;
    ~LoadedKernels();

    Function const& function(int image) const { return functions.at(static_cast<size_t>(image)); }

    std::shared_ptr<Section const> section;
    CudaContext context = nullptr;
    std::vector<CudaModule> modules;
    std::vector<Function> functions;
};

// The kernels of a section in the calling thread's current context; equal sections share them.
// Loads and allocates, so never inside a stream capture of this thread.
// Throws Error: no driver, no context, no kernel for this GPU, or the driver refuses one.
std::shared_ptr<LoadedKernels const> load_kernels(
    std::shared_ptr<Section const> const& section);

}  // namespace ssm_export

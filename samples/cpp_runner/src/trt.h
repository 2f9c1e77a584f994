// The engines of a bundle in TensorRT or TensorRT-RTX, whichever the program was linked to.
#pragma once

#include <memory>
#include <string>

#include "cuda.h"
#include "engine.h"
#include "manifest.h"

namespace ssm_runner {

// tensorrt or tensorrt-rtx, chosen when the program was compiled.
std::string runtime_kind();
// The version of the library that is loaded, and of the headers that the program was compiled with.
std::string runtime_version();
std::string header_version();

// Throws Error where library and headers are of different releases of the API: calls would end up
// in other functions than the ones that are meant.
void check_headers();

// The plugin library: the one that is given, that SSM_EXPORT_PLUGIN_LIBRARY names, beside the
// program, in the bundle or installed; empty where there is none.
std::string find_plugin_library(std::string const& given, std::string const& folder);

class Runtime {
public:
    Runtime();
    ~Runtime();
    // Lets TensorRT load the plugin library.
    void load_plugins(std::string const& path, EngineEntry const& entry);
    // An execution context on a profile of an engine; a file is read once.
    std::unique_ptr<Engine> context(Manifest const& manifest, EngineEntry const& entry, int profile,
                                    CudaStream stream);

private:
    struct Members;
    std::unique_ptr<Members> members_;
};

}  // namespace ssm_runner

#include "driver.h"

#include <dlfcn.h>

#include <cstdlib>

#include "text.h"

namespace ssm_export {
namespace {

template <typename Function>
void find(void* library, char const* name, Function& function, bool needed = true) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr && needed) {
        fail("the CUDA driver has no function ", name);
    }
}

Driver load() {
    char const* const chosen = std::getenv("SSM_EXPORT_CUDA_DRIVER");
    char const* const path = chosen != nullptr && *chosen != '\0' ? chosen : "libcuda.so.1";
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        char const* const reason = dlerror();
        fail("there is no CUDA driver on this machine (", reason == nullptr ? path : reason, ")");
    }
    Driver made{};
    find(library, "cuInit", made.initialize);
    find(library, "cuCtxGetCurrent", made.current_context);
    find(library, "cuCtxPushCurrent_v2", made.push_context);
    find(library, "cuCtxPopCurrent_v2", made.pop_context);
    find(library, "cuCtxGetDevice", made.current_device);
    find(library, "cuDeviceGetAttribute", made.device_attribute);
    find(library, "cuModuleLoadDataEx", made.load_module);
    find(library, "cuModuleUnload", made.unload_module);
    find(library, "cuModuleGetFunction", made.function);
    find(library, "cuFuncSetAttribute", made.set_function_attribute);
    find(library, "cuLaunchKernel", made.launch);
    find(library, "cuMemAlloc_v2", made.allocate);
    find(library, "cuMemFree_v2", made.release);
    find(library, "cuMemsetD8Async", made.set_bytes);
    find(library, "cuStreamCreate", made.create_stream);
    find(library, "cuStreamSynchronize", made.wait_for_stream);
    find(library, "cuStreamDestroy_v2", made.destroy_stream);
    find(library, "cuGetErrorName", made.error_name);
    find(library, "cuGetErrorString", made.error_text);
    find(library, "cuCtxGetId", made.context_id, false);
    find(library, "cuFuncLoad", made.load_function, false);
    find(library, "cuThreadExchangeStreamCaptureMode", made.exchange_capture_mode, false);
    made.check(made.initialize(0), "the CUDA driver does not start");
    return made;
}

}  // namespace

void Driver::check(CudaResult result, std::string const& what) const {
    if (result == 0) {
        return;
    }
    char const* name = nullptr;
    char const* sentence = nullptr;
    error_name(result, &name);
    error_text(result, &sentence);
    fail(what, ": ", name == nullptr ? "unknown CUDA error" : name, " (", result, ")",
         sentence == nullptr ? "" : ", ", sentence == nullptr ? "" : sentence);
}

Driver const& driver() {
    static Driver const loaded = load();  // tried again after a failure
    return loaded;
}

}  // namespace ssm_export

#include "cuda.h"

#include <dlfcn.h>

#include "error.h"

namespace ssm_runner {
namespace {

// Numbers of cuda.h.
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;
constexpr unsigned kNonBlocking = 1;
constexpr int kThreadLocal = 1;

constexpr char kNoGpuFix[] =
    "run it on the machine with the GPU; there, nvidia-smi (on a Jetson: cat "
    "/etc/nv_tegra_release) tells whether the driver is installed; in a container, start it with "
    "the GPU";

template <typename Function>
void find(void* library, char const* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) {
        throw Error(kNoGpu, text("the CUDA driver has no function ", name), "",
                    "install a driver of CUDA 11.4 or later");
    }
}

}  // namespace

Driver load_driver() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        char const* const reason = dlerror();
        throw Error(kNoGpu,
                    text("this machine has no NVIDIA GPU, or no driver for it (",
                         reason == nullptr ? "libcuda.so.1" : reason, ")"),
                    "", kNoGpuFix);
    }
    Driver made{};
    find(library, "cuInit", made.initialize);
    find(library, "cuDeviceGetCount", made.device_count);
    find(library, "cuDeviceGet", made.device);
    find(library, "cuDeviceGetName", made.device_name);
    find(library, "cuDeviceGetAttribute", made.device_attribute);
    find(library, "cuDevicePrimaryCtxRetain", made.retain_context);
    find(library, "cuDevicePrimaryCtxRelease_v2", made.release_context);
    find(library, "cuCtxSetCurrent", made.set_context);
    find(library, "cuMemAlloc_v2", made.allocate);
    find(library, "cuMemFree_v2", made.release);
    find(library, "cuMemAllocHost_v2", made.allocate_pinned);
    find(library, "cuMemFreeHost", made.release_pinned);
    find(library, "cuMemcpyHtoDAsync_v2", made.upload);
    find(library, "cuMemcpyDtoHAsync_v2", made.download);
    find(library, "cuMemsetD8Async", made.set_bytes);
    find(library, "cuStreamCreate", made.create_stream);
    find(library, "cuStreamDestroy_v2", made.destroy_stream);
    find(library, "cuStreamSynchronize", made.wait_for_stream);
    find(library, "cuStreamBeginCapture_v2", made.begin_capture);
    find(library, "cuStreamEndCapture", made.end_capture);
    find(library, "cuGraphInstantiateWithFlags", made.instantiate);
    find(library, "cuGraphLaunch", made.launch_graph);
    find(library, "cuGraphExecDestroy", made.destroy_executable);
    find(library, "cuGraphDestroy", made.destroy_graph);
    find(library, "cuGetErrorName", made.error_name);
    find(library, "cuGetErrorString", made.error_text);
    return made;
}

Device::Device(Driver const& driver) : driver_(driver) {
    int count = 0;
    CudaResult const started = driver_.initialize(0);
    CudaResult const counted = started == 0 ? driver_.device_count(&count) : started;
    if (counted != 0 || count == 0) {
        throw Error(kNoGpu,
                    counted == 0 ? "the CUDA driver finds no GPU"
                                 : "the CUDA driver does not start: " + describe(counted),
                    "", kNoGpuFix);
    }
    check(driver_.device(&device_, 0), "the first GPU");
    char name[256] = "";
    check(driver_.device_name(name, sizeof name, device_), "its name");
    name_ = name;
    check(driver_.device_attribute(&capability_.first, kCapabilityMajor, device_), "its kind");
    check(driver_.device_attribute(&capability_.second, kCapabilityMinor, device_), "its kind");
    // The primary context is the one that TensorRT's own CUDA runtime uses.
    CudaContext context = nullptr;
    check(driver_.retain_context(&context, device_), "a context on the GPU");
    check(driver_.set_context(context), "a context on the GPU");
    check(driver_.create_stream(&stream_, kNonBlocking), "a stream");
}

Device::~Device() {
    for (CudaExecutable const graph : graphs_) {
        driver_.destroy_executable(graph);
    }
    for (Address const address : allocated_) {
        driver_.release(address);
    }
    for (void* const pointer : pinned_) {
        driver_.release_pinned(pointer);
    }
    driver_.destroy_stream(stream_);
    driver_.release_context(device_);
}

Address Device::allocate(int64_t bytes) {
    Address out = 0;
    check(driver_.allocate(&out, static_cast<size_t>(bytes)),
          text("a buffer of ", bytes, " bytes"));
    allocated_.push_back(out);
    return out;
}

void* Device::allocate_pinned(int64_t bytes) {
    void* out = nullptr;
    check(driver_.allocate_pinned(&out, static_cast<size_t>(bytes)),
          text("host memory of ", bytes, " bytes"));
    pinned_.push_back(out);
    return out;
}

void Device::upload(Address to, void const* from, int64_t bytes) {
    check(driver_.upload(to, from, static_cast<size_t>(bytes), stream_), "a copy to the GPU");
}

void Device::download(void* to, Address from, int64_t bytes) {
    check(driver_.download(to, from, static_cast<size_t>(bytes), stream_), "a copy from the GPU");
}

void Device::clear(Address at, int64_t bytes) {
    check(driver_.set_bytes(at, 0, static_cast<size_t>(bytes), stream_), "clearing a state");
}

void Device::wait() { check(driver_.wait_for_stream(stream_), "the GPU"); }

void Device::begin_capture() {
    check(driver_.begin_capture(stream_, kThreadLocal), "capturing a CUDA graph");
}

CudaExecutable Device::end_capture(std::string& why) {
    CudaGraph graph = nullptr;
    CudaExecutable out = nullptr;
    CudaResult result = driver_.end_capture(stream_, &graph);
    if (result == 0 && graph != nullptr) {
        result = driver_.instantiate(&out, graph, 0);
        driver_.destroy_graph(graph);
    }
    if (result != 0 || out == nullptr) {
        why = result != 0 ? describe(result) : "nothing was captured";
        return nullptr;
    }
    graphs_.push_back(out);
    return out;
}

void Device::launch(CudaExecutable graph) {
    check(driver_.launch_graph(graph, stream_), "the CUDA graph of a step");
}

std::string Device::describe(CudaResult result) const {
    char const* name = nullptr;
    char const* sentence = nullptr;
    driver_.error_name(result, &name);
    driver_.error_text(result, &sentence);
    return text(name == nullptr ? "unknown CUDA error" : name, " (", result, ")",
                sentence == nullptr ? "" : ", ", sentence == nullptr ? "" : sentence);
}

void Device::check(CudaResult result, std::string const& what) const {
    if (result != 0) {
        throw Error(kRunnerFailed, what + " failed: " + describe(result), name_,
                    "ssm-export doctor shows the driver, the GPU and its memory");
    }
}

}  // namespace ssm_runner

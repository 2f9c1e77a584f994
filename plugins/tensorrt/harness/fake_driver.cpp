// A CUDA driver for tests on machines without a GPU: it checks what a real one would, counts calls,
// and hands every launch to a function of the test, which computes it on the CPU.
//
// An image it takes is text: `FAKE <capability> <id>`, with `ptx` for the capability where it is
// compiled for whatever device there is.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

constexpr int kInvalidValue = 1;
constexpr int kInvalidContext = 201;
constexpr int kInvalidImage = 200;
constexpr int kNoBinary = 209;
constexpr int kNotFound = 500;
constexpr int kInvalidHandle = 400;

struct Module {
    int image;
    int context;
};

struct Function {
    int image;
    int context;
    int shared_memory = 48 * 1024;
    std::string entry;
};

struct FakeLaunch {
    char const* entry;
    int32_t image;
    uint32_t grid[3];
    uint32_t block[3];
    uint32_t shared_memory;
    void* stream;
    void** parameters;
};

// Aligned as CUDA does it, and full of what is no number.
struct Allocation {
    explicit Allocation(size_t size) : bytes(size), memory(size + kAlignment, 0xff) {}
    unsigned long long start() const {
        auto const first = reinterpret_cast<unsigned long long>(memory.data());
        return (first + kAlignment - 1) / kAlignment * kAlignment;
    }
    static constexpr size_t kAlignment = 256;
    size_t bytes;
    std::vector<unsigned char> memory;
};

using Callback = int (*)(FakeLaunch const*);

int g_capability = 87;
int g_shared_memory = 166912;
int g_context = 1;  // 0: this thread has none
Callback g_callback = nullptr;
std::map<std::string, int> g_failures;  // function to the error it gives
std::map<std::string, int> g_calls;
std::map<void*, std::unique_ptr<Module>> g_modules;
std::vector<std::unique_ptr<Function>> g_functions;
std::map<unsigned long long, std::unique_ptr<Allocation>> g_allocations;
char g_stream;  // its address is the one stream that is made

// Counts a call and gives the error that the test wants of it.
int begin(char const* function) {
    ++g_calls[function];
    auto const found = g_failures.find(function);
    return found == g_failures.end() ? 0 : found->second;
}

char const* name_of(int error) {
    switch (error) {
    case 0: return "CUDA_SUCCESS";
    case kInvalidValue: return "CUDA_ERROR_INVALID_VALUE";
    case 2: return "CUDA_ERROR_OUT_OF_MEMORY";
    case kInvalidImage: return "CUDA_ERROR_INVALID_IMAGE";
    case kInvalidContext: return "CUDA_ERROR_INVALID_CONTEXT";
    case kNoBinary: return "CUDA_ERROR_NO_BINARY_FOR_GPU";
    case kInvalidHandle: return "CUDA_ERROR_INVALID_HANDLE";
    case kNotFound: return "CUDA_ERROR_NOT_FOUND";
    case 719: return "CUDA_ERROR_LAUNCH_FAILED";
    default: return nullptr;
    }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// What the test sets and asks.
void fake_device(int capability, int shared_memory) {
    g_capability = capability;
    g_shared_memory = shared_memory;
}
void fake_context(int context) { g_context = context; }
void fake_callback(Callback callback) { g_callback = callback; }
void fake_failure(char const* function, int error) {
    if (error == 0) {
        g_failures.erase(function);
    } else {
        g_failures[function] = error;
    }
}
int fake_calls(char const* function) { return g_calls[function]; }
// How many bytes from an address on belong to an allocation; 0 for an address of none.
unsigned long long fake_allocated(unsigned long long address) {
    for (auto const& [start, one] : g_allocations) {
        if (start <= address && address < start + one->bytes) {
            return start + one->bytes - address;
        }
    }
    return 0;
}
int fake_allocations() { return static_cast<int>(g_allocations.size()); }
int fake_modules() { return static_cast<int>(g_modules.size()); }
// Every function that was called since the last time: "cuInit 1\n…".
char const* fake_history() {
    static std::string text;
    text.clear();
    for (auto const& [function, times] : g_calls) {
        text += function + " " + std::to_string(times) + "\n";
    }
    g_calls.clear();
    return text.c_str();
}

int cuInit(unsigned) { return begin("cuInit"); }

int cuCtxGetCurrent(void** context) {
    *context = reinterpret_cast<void*>(static_cast<intptr_t>(g_context));
    return begin("cuCtxGetCurrent");
}
int cuCtxGetId(void* context, unsigned long long* id) {
    *id = static_cast<unsigned long long>(reinterpret_cast<intptr_t>(context)) + 100;
    return begin("cuCtxGetId");
}
int cuCtxPushCurrent_v2(void* context) {
    int const error = begin("cuCtxPushCurrent");
    if (error == 0) {
        g_context = static_cast<int>(reinterpret_cast<intptr_t>(context));
    }
    return error;
}
int cuCtxPopCurrent_v2(void**) { return begin("cuCtxPopCurrent"); }
int cuCtxGetDevice(int* device) {
    *device = 0;
    return begin("cuCtxGetDevice");
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 75: *value = g_capability / 10; break;
    case 76: *value = g_capability % 10; break;
    case 97: *value = g_shared_memory; break;
    default: return kInvalidValue;
    }
    return begin("cuDeviceGetAttribute");
}

int cuModuleLoadDataEx(void** module, void const* image, unsigned options, int* keys, void** values) {
    int error = begin("cuModuleLoadDataEx");
    char capability[16] = "";
    int id = 0;
    if (error == 0 &&
        std::sscanf(static_cast<char const*>(image), "FAKE %15s %d", capability, &id) != 2) {
        error = kInvalidImage;
    }
    if (error == 0 && std::strcmp(capability, "ptx") != 0 &&
        std::atoi(capability) != g_capability) {
        error = kNoBinary;
    }
    if (error != 0) {
        for (unsigned i = 0; i < options; ++i) {
            if (keys[i] == 5) {
                std::strcpy(static_cast<char*>(values[i]), "the fake compiler's log");
            }
        }
        return error;
    }
    auto made = std::make_unique<Module>(Module{id, g_context});
    *module = made.get();
    g_modules.emplace(made.get(), std::move(made));
    return 0;
}
int cuModuleUnload(void* module) {
    int const error = begin("cuModuleUnload");
    return error != 0 ? error : g_modules.erase(module) == 1 ? 0 : kInvalidHandle;
}
int cuModuleGetFunction(void** function, void* module, char const* entry) {
    int const error = begin("cuModuleGetFunction");
    auto const found = g_modules.find(module);
    if (error != 0 || found == g_modules.end() || std::strcmp(entry, "missing") == 0) {
        return error != 0 ? error : kNotFound;
    }
    g_functions.push_back(std::make_unique<Function>(
        Function{found->second->image, found->second->context, 48 * 1024, entry}));
    *function = g_functions.back().get();
    return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
    int const error = begin("cuFuncSetAttribute");
    if (error != 0 || attribute != 8 || value > g_shared_memory) {
        return error != 0 ? error : kInvalidValue;
    }
    static_cast<Function*>(function)->shared_memory = value;
    return 0;
}
int cuFuncLoad(void*) { return begin("cuFuncLoad"); }
int cuThreadExchangeStreamCaptureMode(int* mode) {
    static int held = 0;
    std::swap(held, *mode);
    return begin("cuThreadExchangeStreamCaptureMode");
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_memory,
                   void* stream, void** parameters, void** extra) {
    int const error = begin("cuLaunchKernel");
    auto const* const which = static_cast<Function const*>(function);
    if (error != 0) {
        return error;
    }
    if (which->context != g_context) {
        return kInvalidContext;
    }
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || extra != nullptr ||
        shared_memory > static_cast<unsigned>(which->shared_memory)) {
        return kInvalidValue;
    }
    FakeLaunch const launch{which->entry.c_str(), which->image, {grid_x, grid_y, grid_z},
                            {block_x, block_y, block_z}, shared_memory, stream, parameters};
    return g_callback == nullptr ? 0 : g_callback(&launch);
}

int cuGetErrorName(int error, char const** name) {
    *name = name_of(error);
    return *name == nullptr ? kInvalidValue : 0;
}
int cuGetErrorString(int error, char const** text) {
    *text = name_of(error) == nullptr ? nullptr : "a sentence of the driver";
    return *text == nullptr ? kInvalidValue : 0;
}

// Memory as a real driver gives it: whatever was there before.
int cuMemAlloc_v2(unsigned long long* address, size_t bytes) {
    int const error = begin("cuMemAlloc");
    if (error != 0 || bytes == 0) {
        return error != 0 ? error : kInvalidValue;
    }
    auto made = std::make_unique<Allocation>(bytes);
    *address = made->start();
    g_allocations.emplace(*address, std::move(made));
    return 0;
}
int cuMemFree_v2(unsigned long long address) {
    int const error = begin("cuMemFree");
    return error != 0 ? error : g_allocations.erase(address) == 1 ? 0 : kInvalidValue;
}
int cuMemsetD8Async(unsigned long long address, unsigned char value, size_t bytes, void* stream) {
    int const error = begin("cuMemsetD8Async");
    auto const found = g_allocations.find(address);
    if (error != 0 || found == g_allocations.end() || bytes > found->second->bytes ||
        stream != &g_stream) {
        return error != 0 ? error : kInvalidValue;
    }
    std::memset(reinterpret_cast<void*>(address), value, bytes);
    return 0;
}
int cuStreamCreate(void** stream, unsigned flags) {
    int const error = begin("cuStreamCreate");
    *stream = &g_stream;
    return error != 0 ? error : flags == 1 ? 0 : kInvalidValue;
}
int cuStreamDestroy_v2(void* stream) {
    int const error = begin("cuStreamDestroy");
    return error != 0 ? error : stream == &g_stream ? 0 : kInvalidHandle;
}
int cuStreamSynchronize(void*) { return begin("cuStreamSynchronize"); }

// What nothing must ever call; here only so that calls would be seen.
int cuCtxSynchronize() { return begin("cuCtxSynchronize"); }
}
#pragma GCC visibility pop

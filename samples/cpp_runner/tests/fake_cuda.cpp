#include "fake_cuda.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace ssm_runner {
namespace {

constexpr int kInvalidValue = 1;
constexpr int kCaptureInvalidated = 901;

FakeGpu* g_gpu = nullptr;
char g_handle;  // its address is every handle that is not looked at

int failure(char const* function) {
    auto const found = g_gpu->failures.find(function);
    return found == g_gpu->failures.end() ? 0 : found->second;
}

std::unique_ptr<std::vector<float>> poisoned(size_t bytes) {
    return std::make_unique<std::vector<float>>(bytes / sizeof(float) + 1, NAN);
}

int copy(char const* name, Address device, size_t bytes, std::function<void()> work) {
    if (int const error = failure(name)) {
        return error;
    }
    if (!g_gpu->holds(device, bytes)) {
        return kInvalidValue;
    }
    g_gpu->put(name, std::move(work));
    return 0;
}

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

}  // namespace

FakeGpu::FakeGpu() { g_gpu = this; }
FakeGpu::~FakeGpu() { g_gpu = nullptr; }

void FakeGpu::put(std::string const& name, std::function<void()> work) {
    if (capturing) {
        history.push_back("captured " + name);
        recorded.push_back({name, std::move(work)});
    } else {
        stream.push_back({name, std::move(work)});
    }
}

bool FakeGpu::holds(Address address, size_t bytes) const {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) {
        return false;
    }
    auto const& [start, memory] = *--after;
    return address + bytes <= start + (memory->size() - 1) * sizeof(float) + 3;
}

Driver FakeGpu::driver() {
    Driver out{};
    out.initialize = [](unsigned) { return failure("initialize"); };
    out.device_count = [](int* count) {
        *count = g_gpu->devices;
        return 0;
    };
    out.device = [](int* device, int) {
        *device = 0;
        return 0;
    };
    out.device_name = [](char* name, int, int) {
        std::strcpy(name, "a fake GPU");
        return 0;
    };
    out.device_attribute = [](int* value, int attribute, int) {
        *value = attribute == 75 ? g_gpu->capability / 10 : g_gpu->capability % 10;
        return 0;
    };
    out.retain_context = [](CudaContext* context, int) {
        *context = reinterpret_cast<CudaContext>(&g_handle);
        ++g_gpu->contexts;
        return 0;
    };
    out.release_context = [](int) {
        --g_gpu->contexts;
        return 0;
    };
    out.set_context = [](CudaContext) { return 0; };
    out.allocate = [](Address* address, size_t bytes) {
        if (int const error = failure("allocate")) {
            return error;
        }
        auto memory = poisoned(bytes);
        *address = reinterpret_cast<Address>(memory->data());
        g_gpu->allocations.emplace(*address, std::move(memory));
        return 0;
    };
    out.release = [](Address address) {
        return g_gpu->allocations.erase(address) == 1 ? 0 : kInvalidValue;
    };
    out.allocate_pinned = [](void** host, size_t bytes) {
        auto memory = poisoned(bytes);
        *host = memory->data();
        g_gpu->pinned.emplace(*host, std::move(memory));
        return 0;
    };
    out.release_pinned = [](void* host) {
        return g_gpu->pinned.erase(host) == 1 ? 0 : kInvalidValue;
    };
    out.upload = [](Address to, void const* from, size_t bytes, CudaStream) {
        return copy("upload", to, bytes, [=] { std::memcpy(pointer(to), from, bytes); });
    };
    out.download = [](void* to, Address from, size_t bytes, CudaStream) {
        return copy("download", from, bytes, [=] { std::memcpy(to, pointer(from), bytes); });
    };
    out.set_bytes = [](Address at, unsigned char value, size_t bytes, CudaStream) {
        return copy("clear", at, bytes, [=] { std::memset(pointer(at), value, bytes); });
    };
    out.create_stream = [](CudaStream* made, unsigned flags) {
        *made = reinterpret_cast<CudaStream>(&g_handle);
        ++g_gpu->streams;
        return flags == 1 ? 0 : kInvalidValue;
    };
    out.destroy_stream = [](CudaStream) {
        --g_gpu->streams;
        return 0;
    };
    out.wait_for_stream = [](CudaStream) {
        if (g_gpu->capturing) {
            return kCaptureInvalidated;
        }
        for (FakeGpu::Work const& work : std::exchange(g_gpu->stream, {})) {
            g_gpu->history.push_back(work.name);
            work.run();
        }
        return failure("wait");
    };
    out.begin_capture = [](CudaStream, int) {
        g_gpu->capturing = true;
        g_gpu->recorded.clear();
        return 0;
    };
    out.end_capture = [](CudaStream, CudaGraph* graph) {
        g_gpu->capturing = false;
        *graph = reinterpret_cast<CudaGraph>(&g_handle);
        return failure("end_capture");
    };
    out.instantiate = [](CudaExecutable* made, CudaGraph, unsigned long long) {
        *made = reinterpret_cast<CudaExecutable>(&g_handle + g_gpu->graphs.size() + 1);
        g_gpu->graphs[*made] = g_gpu->recorded;
        return failure("instantiate");
    };
    out.launch_graph = [](CudaExecutable graph, CudaStream) {
        auto const number = static_cast<int>(reinterpret_cast<char*>(graph) - &g_handle - 1);
        g_gpu->put("graph " + std::to_string(number), [] {});
        for (FakeGpu::Work const& work : g_gpu->graphs.at(graph)) {
            g_gpu->put(work.name, work.run);
        }
        return failure("launch_graph");
    };
    out.destroy_executable = [](CudaExecutable graph) {
        return g_gpu->graphs.erase(graph) == 1 ? 0 : kInvalidValue;
    };
    out.destroy_graph = [](CudaGraph) { return 0; };
    out.error_name = [](CudaResult error, char const** name) {
        *name = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OTHER";
        return 0;
    };
    out.error_text = [](CudaResult, char const** text) {
        *text = "a sentence of the driver";
        return 0;
    };
    return out;
}

}  // namespace ssm_runner

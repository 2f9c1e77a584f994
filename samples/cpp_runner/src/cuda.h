// The CUDA driver, loaded when it is first needed, and what this program does with a GPU.
//
// libcuda comes with the GPU's driver, so no CUDA toolkit is needed and the program starts, and
// says what is missing, on a machine without a GPU.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "state_buffers.h"

// The driver's own handle types, so that its header is not needed.
struct CUctx_st;
struct CUstream_st;
struct CUgraph_st;
struct CUgraphExec_st;

namespace ssm_runner {

using CudaContext = CUctx_st*;
using CudaStream = CUstream_st*;
using CudaGraph = CUgraph_st*;
using CudaExecutable = CUgraphExec_st*;
using CudaResult = int;

struct Driver {
    CudaResult (*initialize)(unsigned flags);
    CudaResult (*device_count)(int*);
    CudaResult (*device)(int*, int index);
    CudaResult (*device_name)(char*, int size, int device);
    CudaResult (*device_attribute)(int*, int attribute, int device);
    CudaResult (*retain_context)(CudaContext*, int device);
    CudaResult (*release_context)(int device);
    CudaResult (*set_context)(CudaContext);
    CudaResult (*allocate)(Address*, size_t bytes);
    CudaResult (*release)(Address);
    CudaResult (*allocate_pinned)(void**, size_t bytes);
    CudaResult (*release_pinned)(void*);
    CudaResult (*upload)(Address, void const*, size_t bytes, CudaStream);
    CudaResult (*download)(void*, Address, size_t bytes, CudaStream);
    CudaResult (*set_bytes)(Address, unsigned char value, size_t bytes, CudaStream);
    CudaResult (*create_stream)(CudaStream*, unsigned flags);
    CudaResult (*destroy_stream)(CudaStream);
    CudaResult (*wait_for_stream)(CudaStream);
    CudaResult (*begin_capture)(CudaStream, int mode);
    CudaResult (*end_capture)(CudaStream, CudaGraph*);
    CudaResult (*instantiate)(CudaExecutable*, CudaGraph, unsigned long long flags);
    CudaResult (*launch_graph)(CudaExecutable, CudaStream);
    CudaResult (*destroy_executable)(CudaExecutable);
    CudaResult (*destroy_graph)(CudaGraph);
    CudaResult (*error_name)(CudaResult, char const**);
    CudaResult (*error_text)(CudaResult, char const**);
};

// The functions of libcuda.so.1. Throws Error: there is no driver, or one older than CUDA 11.4.
Driver load_driver();

// The first GPU: its context, a stream, memory, copies, captured graphs. All of it is given back in
// the destructor. Everything that can fail throws Error.
class Device {
public:
    explicit Device(Driver const& driver);
    ~Device();
    Device(Device const&) = delete;
    Device& operator=(Device const&) = delete;

    std::string const& name() const { return name_; }
    std::pair<int, int> capability() const { return capability_; }
    CudaStream stream() const { return stream_; }

    Address allocate(int64_t bytes);
    // Host memory that the GPU reads and writes by itself, so that copies can be captured.
    void* allocate_pinned(int64_t bytes);

    // On the stream, in order.
    void upload(Address to, void const* from, int64_t bytes);
    void download(void* to, Address from, int64_t bytes);
    void clear(Address at, int64_t bytes);
    void wait();

    // What is put on the stream in between is recorded and not run. end_capture gives null, and
    // why, where something cannot be recorded.
    void begin_capture();
    CudaExecutable end_capture(std::string& why);
    void launch(CudaExecutable graph);

private:
    void check(CudaResult result, std::string const& what) const;
    std::string describe(CudaResult result) const;

    Driver driver_;
    int device_ = 0;
    std::string name_;
    std::pair<int, int> capability_;
    CudaStream stream_ = nullptr;
    std::vector<Address> allocated_;
    std::vector<void*> pinned_;
    std::vector<CudaExecutable> graphs_;
};

}  // namespace ssm_runner

// The CUDA driver, loaded when it is first needed: the library itself loads where there is none.
#pragma once

#include <cstddef>
#include <string>

// The driver's own handle types, so that its header is not needed.
struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUstream_st;

namespace ssm_export {

using CudaContext = CUctx_st*;
using CudaModule = CUmod_st*;
using CudaFunction = CUfunc_st*;
using CudaStream = CUstream_st*;
using CudaResult = int;
using CudaAddress = unsigned long long;

// The driver's functions. Those of the second group are null in drivers that are too old.
struct Driver {
    CudaResult (*initialize)(unsigned flags);
    CudaResult (*current_context)(CudaContext*);
    CudaResult (*push_context)(CudaContext);
    CudaResult (*pop_context)(CudaContext*);
    CudaResult (*current_device)(int*);
    CudaResult (*device_attribute)(int*, int attribute, int device);
    CudaResult (*load_module)(
        CudaModule*, void const* image, unsigned options, int* keys, void** values);
    CudaResult (*unload_module)(CudaModule);
    CudaResult (*function)(CudaFunction*, CudaModule, char const* entry);
    CudaResult (*set_function_attribute)(CudaFunction, int attribute, int value);
    CudaResult (*launch)(CudaFunction, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                         unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                         CudaStream, void** parameters, void** extra);
    CudaResult (*allocate)(CudaAddress*, size_t bytes);
    CudaResult (*release)(CudaAddress);
    CudaResult (*set_bytes)(CudaAddress, unsigned char value, size_t bytes, CudaStream);
    CudaResult (*create_stream)(CudaStream*, unsigned flags);
    CudaResult (*wait_for_stream)(CudaStream);
    CudaResult (*destroy_stream)(CudaStream);
    CudaResult (*error_name)(CudaResult, char const**);
    CudaResult (*error_text)(CudaResult, char const**);

    CudaResult (*context_id)(CudaContext, unsigned long long*);
    CudaResult (*load_function)(CudaFunction);
    CudaResult (*exchange_capture_mode)(int*);

    // Throws Error where a call failed: what was done, the error's name, number and sentence.
    void check(CudaResult result, std::string const& what) const;
};

// The driver of this machine: libcuda.so.1, or the file that SSM_EXPORT_CUDA_DRIVER names.
// Throws Error: there is none, or a function is missing in it.
Driver const& driver();

// While it lives, loading and allocating do not disturb a capture on another stream.
class RelaxedCapture {
public:
    explicit RelaxedCapture(Driver const& cuda) : cuda_(cuda) { exchange(); }
    ~RelaxedCapture() { exchange(); }
    RelaxedCapture(RelaxedCapture const&) = delete;
    RelaxedCapture& operator=(RelaxedCapture const&) = delete;

private:
    void exchange() {
        if (cuda_.exchange_capture_mode != nullptr) {
            cuda_.exchange_capture_mode(&mode_);
        }
    }
    Driver const& cuda_;
    int mode_ = 2;  // CU_STREAM_CAPTURE_MODE_RELAXED
};

inline constexpr CudaResult kInvalidImage = 200;
inline constexpr CudaResult kNoBinaryForGpu = 209;
inline constexpr CudaResult kInvalidPtx = 218;
inline constexpr CudaResult kUnsupportedPtx = 222;

}  // namespace ssm_export

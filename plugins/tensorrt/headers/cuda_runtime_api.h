// The little that TensorRT's headers want of CUDA's, for machines without a CUDA toolkit.
// CMake takes the toolkit's own header where it finds one.
#pragma once

struct CUstream_st;
struct CUevent_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;

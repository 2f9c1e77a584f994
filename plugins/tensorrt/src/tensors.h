// What TensorRT says of tensors, in this library's terms.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace ssm_export {

// What is known of one input or output. A size of -1 is not known yet.
struct Tensor {
    std::string type;            // ONNX type name; empty where it is not known
    bool shaped = false;         // whether `shape` is known
    std::vector<int64_t> shape;  // no sizes at all: an optional input that is left out

    bool left_out() const { return shaped && shape.empty(); }
};

using Tensors = std::vector<Tensor>;

// "float16"; "TensorRT type 17" for one that no kernel can have.
std::string type_name(nvinfer1::DataType type);

// The type of a name. Throws Error: unknown.
nvinfer1::DataType type_of(std::string const& name);

Tensors tensors(nvinfer1::PluginTensorDesc const* descriptions, int32_t count);

// The sizes of the description, or of a limit of the profile.
Tensors tensors(nvinfer1::DynamicPluginTensorDesc const* descriptions, int32_t count,
                nvinfer1::Dims nvinfer1::DynamicPluginTensorDesc::*limit = nullptr);
Tensors tensors(nvinfer1::DataType const* types, int32_t count);
Tensors tensors(nvinfer1::DimsExprs const* shapes, int32_t count);

// "(2, 65, 1536) float16, left out, (?, 3, 1536) float16"
std::string show(Tensors const& tensors);
std::string show(Tensor const& tensor);

}  // namespace ssm_export

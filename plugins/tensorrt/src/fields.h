// Plugin fields: the attributes of a node as TensorRT hands them over.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "container.h"

namespace ssm_export {

inline constexpr char kKernelsField[] = "kernels";

// What an engine stores beside the kernels. A change that older libraries cannot read raises it.
inline constexpr char kEngineFormatField[] = "ssm_export_format";
inline constexpr int32_t kEngineFormat = 1;

class Fields {
public:
    explicit Fields(nvinfer1::PluginFieldCollection const* collection);

    // The bytes of a CHAR field; empty where there is none. Throws Error: another type.
    std::string_view bytes(std::string_view name) const;

    // An INT32 field, or `otherwise`. Throws Error: another type.
    int64_t integer(std::string_view name, int64_t otherwise) const;

    // Why a section was not made for a node with these attributes; empty where it was.
    std::string contradiction(Section const& section) const;

    // "activation = 'silu', ndim = 1"; `kernels` by its length.
    std::string show() const;

private:
    nvinfer1::PluginField const* find(std::string_view name) const;

    std::vector<nvinfer1::PluginField> fields_;
};

}  // namespace ssm_export

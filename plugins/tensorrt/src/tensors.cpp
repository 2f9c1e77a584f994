#include "tensors.h"

#include <algorithm>
#include <utility>

#include "text.h"

namespace ssm_export {
namespace {

using nvinfer1::DataType;

constexpr std::pair<char const*, DataType> kTypes[] = {
    {"float32", DataType::kFLOAT}, {"float16", DataType::kHALF}, {"bfloat16", DataType::kBF16},
    {"int32", DataType::kINT32},   {"int64", DataType::kINT64},  {"int8", DataType::kINT8},
    {"uint8", DataType::kUINT8},   {"bool", DataType::kBOOL},    {"float8e4m3fn", DataType::kFP8},
};

std::vector<int64_t> sizes_of(nvinfer1::Dims const& dims) {
    return {dims.d, dims.d + std::clamp(dims.nbDims, 0, nvinfer1::Dims::MAX_DIMS)};
}

}  // namespace

std::string type_name(DataType type) {
    for (auto const& [name, one] : kTypes) {
        if (one == type) {
            return name;
        }
    }
    return text("TensorRT type ", static_cast<int>(type));
}

DataType type_of(std::string const& name) {
    for (auto const& [one, type] : kTypes) {
        if (one == name) {
            return type;
        }
    }
    fail("TensorRT has no type '", name, "'");
}

Tensors tensors(nvinfer1::PluginTensorDesc const* descriptions, int32_t count) {
    Tensors made;
    for (int32_t i = 0; i < count; ++i) {
        made.push_back({type_name(descriptions[i].type), true, sizes_of(descriptions[i].dims)});
    }
    return made;
}

Tensors tensors(nvinfer1::DynamicPluginTensorDesc const* descriptions, int32_t count,
                nvinfer1::Dims nvinfer1::DynamicPluginTensorDesc::*limit) {
    Tensors made;
    for (int32_t i = 0; i < count; ++i) {
        auto const& one = descriptions[i];
        made.push_back(
            {type_name(one.desc.type), true, sizes_of(limit ? one.*limit : one.desc.dims)});
    }
    return made;
}

Tensors tensors(DataType const* types, int32_t count) {
    Tensors made;
    for (int32_t i = 0; i < count; ++i) {
        made.push_back({type_name(types[i]), false, {}});
    }
    return made;
}

Tensors tensors(nvinfer1::DimsExprs const* shapes, int32_t count) {
    Tensors made;
    for (int32_t i = 0; i < count; ++i) {
        Tensor one{"", true, {}};
        for (int32_t axis = 0; axis < shapes[i].nbDims; ++axis) {
            auto const* const size = shapes[i].d[axis];
            one.shape.push_back(size->isConstant() ? size->getConstantValue() : -1);
        }
        made.push_back(std::move(one));
    }
    return made;
}

std::string show(Tensor const& tensor) {
    if (tensor.left_out()) {
        return "left out";
    }
    auto const size = [](int64_t n) { return n < 0 ? std::string("?") : std::to_string(n); };
    std::string const shape =
        tensor.shaped ? text("(", joined(tensor.shape, ", ", size), ")") : std::string();
    return text(shape, shape.empty() || tensor.type.empty() ? "" : " ", tensor.type);
}

std::string show(Tensors const& tensors) {
    return joined(tensors, ", ", [](Tensor const& one) { return show(one); });
}

}  // namespace ssm_export

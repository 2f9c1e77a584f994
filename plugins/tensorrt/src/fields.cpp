#include "fields.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "text.h"

namespace ssm_export {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

// Fields that say how a node is found or run, not what it computes.
constexpr std::string_view kIgnored[] = {kKernelsField, kEngineFormatField, "plugin_namespace",
                                         "plugin_version"};

// A text field without the zero that some parsers append.
std::string_view text_of(PluginField const& field) {
    std::string_view const all(static_cast<char const*>(field.data),
                               static_cast<size_t>(std::max(field.length, 0)));
    return all.substr(0, all.find_last_not_of('\0') + 1);
}

template <typename T>
double first_as(PluginField const& field) {
    T value{};
    std::memcpy(&value, field.data, sizeof value);
    return static_cast<double>(value);
}

std::optional<double> number_of(PluginField const& field) {
    if (field.length != 1 || field.data == nullptr) {
        return std::nullopt;
    }
    switch (field.type) {
    case PluginFieldType::kINT32: return first_as<int32_t>(field);
    case PluginFieldType::kINT64: return first_as<int64_t>(field);
    case PluginFieldType::kFLOAT32: return first_as<float>(field);
    case PluginFieldType::kFLOAT64: return first_as<double>(field);
    default: return std::nullopt;
    }
}

std::string show_value(PluginField const& field) {
    if (field.type == PluginFieldType::kCHAR) {
        return text("'", text_of(field).substr(0, 64), "'");
    }
    auto const number = number_of(field);
    return number ? text(*number)
                  : text(field.length, " values of field type ", static_cast<int>(field.type));
}

// ONNX has floats of 32 bits, so a float that went through a graph is compared as one.
bool same_number(double field, Attribute const& attribute) {
    double const value = std::strtod(attribute.value.c_str(), nullptr);
    return field == value || static_cast<float>(field) == static_cast<float>(value);
}

bool equal(PluginField const& field, Attribute const& attribute) {
    if (attribute.kind == "string") {
        return field.type == PluginFieldType::kCHAR && text_of(field) == attribute.value;
    }
    auto const number = number_of(field);
    return number && same_number(*number, attribute);
}

// What a parser passes for an attribute that the node does not have.
bool is_default(PluginField const& field) {
    std::string_view const name = field.name;
    auto const number = number_of(field);
    return (name == "ndim" && number == 1.0) || name == "chunk_size" ||
           (name == "scale" && number == 0.0);
}

}  // namespace

Fields::Fields(nvinfer1::PluginFieldCollection const* collection) {
    if (collection == nullptr || collection->fields == nullptr) {
        return;
    }
    for (int32_t i = 0; i < collection->nbFields; ++i) {
        PluginField const& field = collection->fields[i];
        if (field.name == nullptr || (field.data == nullptr && field.length > 0)) {
            fail("plugin field ", i, " has no name or no data");
        }
        fields_.push_back(field);
    }
}

PluginField const* Fields::find(std::string_view name) const {
    auto const found = std::find_if(fields_.begin(), fields_.end(),
                                    [&](PluginField const& one) { return one.name == name; });
    return found == fields_.end() ? nullptr : &*found;
}

std::string_view Fields::bytes(std::string_view name) const {
    PluginField const* const field = find(name);
    if (field == nullptr || field->length <= 0) {
        return {};
    }
    if (field->type != PluginFieldType::kCHAR) {
        fail("field '", name, "' must be text, it is ", show_value(*field));
    }
    return {static_cast<char const*>(field->data), static_cast<size_t>(field->length)};
}

int64_t Fields::integer(std::string_view name, int64_t otherwise) const {
    PluginField const* const field = find(name);
    if (field == nullptr) {
        return otherwise;
    }
    auto const number = number_of(*field);
    if (!number || *number != std::floor(*number)) {
        fail("field '", name, "' must be an integer, it is ", show_value(*field));
    }
    return static_cast<int64_t>(*number);
}

std::string Fields::contradiction(Section const& section) const {
    for (PluginField const& field : fields_) {
        std::string_view const name = field.name;
        if (std::find(std::begin(kIgnored), std::end(kIgnored), name) != std::end(kIgnored)) {
            continue;
        }
        Attribute const* const attribute = section.attribute(name);
        if (attribute == nullptr && !is_default(field)) {
            return text("the node has ", name, " = ", show_value(field),
                        ", the kernels were made without that attribute");
        }
        if (attribute != nullptr && !equal(field, *attribute)) {
            return text("the node has ", name, " = ", show_value(field),
                        ", the kernels were made for ", name, " = ", attribute->value);
        }
    }
    return {};
}

std::string Fields::show() const {
    if (fields_.empty()) {
        return "no attributes";
    }
    return joined(fields_, ", ", [](PluginField const& field) {
        return field.name == std::string_view(kKernelsField)
                   ? text("kernels of ", field.length, " bytes")
                   : text(field.name, " = ", show_value(field));
    });
}

}  // namespace ssm_export

// Element types of tensors: their names in the manifest, their sizes, and their numbers as float.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

namespace ssm_runner {

enum class Type { float32, float16, bfloat16, int8, int32, int64, other };

inline char const* name_of(Type type) {
    static char const* const kNames[] = {"float32", "float16", "bfloat16",    "int8",
                                         "int32",   "int64",   "another type"};
    return kNames[static_cast<int>(type)];
}

inline Type type_named(std::string const& name) {
    for (int i = 0; i < static_cast<int>(Type::other); ++i) {
        if (name == name_of(static_cast<Type>(i))) {
            return static_cast<Type>(i);
        }
    }
    return Type::other;
}

inline int64_t bytes_of(Type type) {
    static constexpr int64_t kBytes[] = {4, 2, 2, 1, 4, 8, 0};
    return kBytes[static_cast<int>(type)];
}

inline float float_of_bits(uint32_t bits) {
    float out = 0;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline float half_to_float(uint16_t half) {
    uint32_t const sign = uint32_t{half & 0x8000U} << 16;
    uint32_t const magnitude = uint32_t{half & 0x7fffU} << 13;
    if (magnitude >= 0x0f800000) {  // infinity, or no number
        return float_of_bits(sign | 0x7f800000 | magnitude);
    }
    // The exponent's bias is 127 and not 15; a product makes subnormal numbers normal.
    return float_of_bits(sign | magnitude) * 0x1p112F;
}

// Element `index` of a buffer as float.
inline float element(void const* buffer, Type type, int64_t index) {
    char const* const at = static_cast<char const*>(buffer) + index * bytes_of(type);
    uint16_t half = 0;
    float out = 0;
    if (type == Type::float32) {
        std::memcpy(&out, at, sizeof out);
        return out;
    }
    std::memcpy(&half, at, sizeof half);
    return type == Type::float16 ? half_to_float(half) : float_of_bits(uint32_t{half} << 16);
}

}  // namespace ssm_runner

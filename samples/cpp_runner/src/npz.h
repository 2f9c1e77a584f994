// Arrays of numpy's .npz files: zip archives of .npy files, stored or deflated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor_type.h"

namespace ssm_runner {

struct Array {
    Type type = Type::other;
    std::vector<int64_t> shape;
    std::string bytes;

    int64_t count() const { return static_cast<int64_t>(bytes.size()) / bytes_of(type); }
    float value(int64_t index) const { return element(bytes.data(), type, index); }
    std::vector<int64_t> as_int64() const;
};

// The array `name` of a file. Throws Error: no such file or array, damaged, another type.
Array read_npz(std::string const& path, std::string const& name);

}  // namespace ssm_runner
